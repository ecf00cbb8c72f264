//! What an attempt came to, and what is done next. Pure.

use crate::dialect::remote;
use std::time::Duration;

/// Kinds of ends that an attempt at a target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Ok,
    /// The target blames the request: asking again, or somebody else, would not help.
    ClientFault,
    /// It can't take more now. No sickness, but nothing to be had for a while.
    Throttled,
    /// It could not be reached, broke off, failed, or spoke no sense; or was not heard of in time.
    Transient,
    /// It began and then went silent.
    Stall,
    /// A policy, ours or the target's, says no.
    PolicyStop,
    /// The client left, or its time was up.
    Cancelled,
}

impl Class {
    pub const ALL: [Class; 7] = [
        Class::Ok,
        Class::ClientFault,
        Class::Throttled,
        Class::Transient,
        Class::Stall,
        Class::PolicyStop,
        Class::Cancelled,
    ];

    /// For labels and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Ok => "ok",
            Class::ClientFault => "client_fault",
            Class::Throttled => "throttled",
            Class::Transient => "transient",
            Class::Stall => "stall",
            Class::PolicyStop => "policy_stop",
            Class::Cancelled => "cancelled",
        }
    }

    /// Whether it tells of a sick target.
    pub fn is_failure(self) -> bool {
        matches!(self, Class::Transient | Class::Stall)
    }
}

/// Of a status line. Redirects are not followed, so they are as useless as a broken answer.
pub(super) fn of_status(status: u16, has_retry_after: bool) -> Class {
    match status {
        200..=299 => Class::Ok,
        429 => Class::Throttled,
        503 | 529 if has_retry_after => Class::Throttled,
        408 | 409 => Class::Transient,
        400..=499 => Class::ClientFault,
        _ => Class::Transient,
    }
}

/// Of a fault in the stream.
pub(super) fn of_fault(fault: remote::Fault) -> (Class, &'static str) {
    use remote::{Fault, Reported};
    match fault {
        Fault::Broken(word) => (Class::Transient, word),
        Fault::Reported(Reported::Throttled) => (Class::Throttled, "reported_overload"),
        Fault::Reported(Reported::Invalid) => (Class::ClientFault, "reported_fault"),
        Fault::Reported(Reported::Filtered) => (Class::PolicyStop, "filtered"),
        Fault::Reported(Reported::Server) => (Class::Transient, "reported_error"),
    }
}

/// What an upstream may say about waiting. Longer waits are as good as none.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// `retry-after-ms` before `retry-after`, which is seconds or a date. Nonsense says nothing.
pub(super) fn retry_after(ms: Option<&str>, plain: Option<&str>, now: std::time::SystemTime) -> Option<Duration> {
    let seconds = |text: &str, unit: f64| {
        let n = text.trim().parse::<f64>().ok()? * unit;
        (n >= 0.0).then(|| Duration::try_from_secs_f64(n).unwrap_or(RETRY_AFTER_MAX))
    };
    let date = |text: &str| httpdate::parse_http_date(text.trim()).ok()?.duration_since(now).ok();
    let wait = ms.and_then(|text| seconds(text, 0.001));
    let wait = wait.or_else(|| plain.and_then(|text| seconds(text, 1.0).or_else(|| date(text))));
    wait.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// What is known when an attempt has failed.
#[derive(Debug, Clone, Copy)]
pub(in crate::gateway) struct Situation {
    pub class: Class,
    /// Content was handed on: nothing can be taken back.
    pub first_byte_sent: bool,
    pub has_other_target: bool,
    pub attempts_left: u32,
    pub retry_after: Option<Duration>,
    /// Until the deadline.
    pub remaining: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Next {
    /// Tell the client.
    Surface,
    /// The next target.
    Other,
    /// The same target again, after this wait, if the retry budget allows; else the next.
    Retry(Option<Duration>),
}

/// The table of what follows what.
pub(in crate::gateway) fn next(it: Situation) -> Next {
    match it.class {
        _ if it.first_byte_sent => Next::Surface,
        Class::Ok | Class::ClientFault | Class::PolicyStop | Class::Cancelled => Next::Surface,
        Class::Throttled if it.has_other_target => Next::Other,
        Class::Throttled => match it.retry_after {
            Some(wait) if wait < it.remaining && it.attempts_left > 0 => Next::Retry(Some(wait)),
            _ => Next::Other,
        },
        Class::Transient | Class::Stall if it.attempts_left > 0 => Next::Retry(None),
        Class::Transient | Class::Stall => Next::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_status_has_its_class() {
        for (status, has_retry_after, class) in [
            (200, false, Class::Ok),
            (204, false, Class::Ok),
            (302, false, Class::Transient),
            (400, false, Class::ClientFault),
            (401, false, Class::ClientFault),
            (404, true, Class::ClientFault),
            (408, false, Class::Transient),
            (409, false, Class::Transient),
            (422, false, Class::ClientFault),
            (429, false, Class::Throttled),
            (500, true, Class::Transient),
            (502, false, Class::Transient),
            (503, false, Class::Transient),
            (503, true, Class::Throttled),
            (529, false, Class::Transient),
            (529, true, Class::Throttled),
        ] {
            assert_eq!(of_status(status, has_retry_after), class, "{status}");
        }
    }

    #[test]
    fn retry_after_in_all_its_spellings() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let plain = |text: &str| retry_after(None, Some(text), now);
        assert_eq!(plain("7"), Some(Duration::from_secs(7)));
        assert_eq!(plain(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(plain("1e9"), Some(RETRY_AFTER_MAX));
        assert_eq!(plain("inf"), Some(RETRY_AFTER_MAX));
        assert_eq!(plain("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        for odd in ["-1", "soon", "", "NaN", "Sun, 06 Nov 1990 08:49:47 GMT"] {
            assert_eq!(plain(odd), None, "{odd}");
        }
        assert_eq!(retry_after(Some("250"), Some("9"), now), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(Some("x"), Some("9"), now), Some(Duration::from_secs(9)));
    }

    #[test]
    fn the_table() {
        let base = Situation {
            class: Class::Transient,
            first_byte_sent: false,
            has_other_target: true,
            attempts_left: 2,
            retry_after: None,
            remaining: Duration::from_secs(10),
        };
        for class in Class::ALL {
            assert_eq!(next(Situation { class, first_byte_sent: true, ..base }), Next::Surface, "{class:?}");
        }
        for class in [Class::ClientFault, Class::PolicyStop, Class::Cancelled] {
            assert_eq!(next(Situation { class, ..base }), Next::Surface);
        }
        for class in [Class::Transient, Class::Stall] {
            assert_eq!(next(Situation { class, ..base }), Next::Retry(None));
            assert_eq!(next(Situation { class, attempts_left: 0, ..base }), Next::Other);
        }
        let throttled = |has_other_target, wait_s: Option<u64>| {
            let retry_after = wait_s.map(Duration::from_secs);
            next(Situation { class: Class::Throttled, has_other_target, retry_after, ..base })
        };
        assert_eq!(throttled(true, Some(1)), Next::Other);
        assert_eq!(throttled(false, Some(1)), Next::Retry(Some(Duration::from_secs(1))));
        assert_eq!(throttled(false, Some(10)), Next::Other, "longer than there is time");
        assert_eq!(throttled(false, None), Next::Other);
    }
}
