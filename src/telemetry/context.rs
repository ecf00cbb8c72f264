//! Where a request stands in a trace that may have begun elsewhere: W3C's `traceparent` and `tracestate`.
//!
//! Source: <https://www.w3.org/TR/trace-context/>. Read strictly: whatever is not as it says begins a new trace, and what
//! is passed on is always well formed. Nothing else of a client's head goes on (`baggage` is left alone: it is free text).

use std::fmt;

pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";

/// Members of a `tracestate`, and its bytes; a longer one is not passed on.
const MEMBERS_MAX: usize = 32;
const STATE_BYTES_MAX: usize = 512;
const SAMPLED: u8 = 1;
/// The trace's id is random, as its maker says.
const RANDOM: u8 = 2;

/// Never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    fn fresh() -> Self {
        Self(rand::random::<u128>().max(1).to_be_bytes())
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether a trace of this id is among the part `ratio` of all that is recorded: every server that is asked the same
    /// answers the same.
    fn is_within(self, ratio: f64) -> bool {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        // 53 bits, which a float holds exactly.
        let place = (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11) as f64;
        place < ratio * (1_u64 << 53) as f64
    }
}

impl SpanId {
    pub fn fresh() -> Self {
        Self(rand::random::<u64>().max(1).to_be_bytes())
    }

    pub fn bytes(self) -> [u8; 8] {
        self.0
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// One request's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: TraceId,
    /// Whose span ours is a part of; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// Ours.
    pub span: SpanId,
    flags: u8,
    /// Others' notes, passed on as they came.
    pub state: Option<String>,
}

impl TraceContext {
    /// A new trace, recorded if it is among the part `ratio` of all.
    pub fn fresh(ratio: f64) -> Self {
        let trace = TraceId::fresh();
        let flags = RANDOM | if trace.is_within(ratio) { SAMPLED } else { 0 };
        Self { trace, parent: None, span: SpanId::fresh(), flags, state: None }
    }

    /// The trace that these header lines say, which then decide whether it is recorded, or else a new one.
    pub fn read<'a>(
        mut traceparent: impl Iterator<Item = &'a [u8]>,
        tracestate: impl Iterator<Item = &'a [u8]>,
        ratio: f64,
    ) -> Self {
        let said = traceparent.next().filter(|_| traceparent.next().is_none()).and_then(parse_parent);
        let Some((trace, parent, flags)) = said else { return Self::fresh(ratio) };
        Self { trace, parent: Some(parent), span: SpanId::fresh(), flags, state: parse_state(tracestate) }
    }

    /// Whether it is recorded, by us and by those we ask.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The bits that are passed on.
    pub fn flags(&self) -> u32 {
        self.flags.into()
    }

    /// What to tell somebody whose work is a part of `span`.
    pub fn traceparent(&self, span: SpanId) -> String {
        format!("00-{}-{span}-{:02x}", self.trace, self.flags)
    }
}

/// `00-` trace `-` parent `-` flags, in lower-case hexadecimal digits. A later version may add to that behind a dash.
fn parse_parent(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    const LEN: usize = 55;
    let (head, more) = text.split_at_checked(LEN)?;
    let version = hex::<1>(&head[..2])?[0];
    let is_whole = match version {
        0xff => false,
        0 => more.is_empty(),
        _ => more.is_empty() || more[0] == b'-',
    };
    let is_dashed = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let (trace, parent, flags) = (hex::<16>(&head[3..35])?, hex::<8>(&head[36..52])?, hex::<1>(&head[53..])?[0]);
    let is_real = trace != [0; 16] && parent != [0; 8];
    (is_whole && is_dashed && is_real).then_some((TraceId(trace), SpanId(parent), flags & (SAMPLED | RANDOM)))
}

fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

/// `None`: there is none, or one that is not as it should be.
fn parse_state<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let mut members: Vec<&str> = Vec::new();
    let mut n_bytes = 0;
    for line in lines {
        for member in std::str::from_utf8(line).ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            let is_twice = members.iter().any(|known| known.split_once('=').is_some_and(|(known, _)| known == key));
            n_bytes += member.len() + 1;
            if is_twice || !is_key(key) || !is_value(value) || members.len() == MEMBERS_MAX || n_bytes > STATE_BYTES_MAX
            {
                return None;
            }
            members.push(member);
        }
    }
    (!members.is_empty()).then(|| members.join(","))
}

/// `key`, or `tenant@system`.
fn is_key(key: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(&byte);
    let is_part = |part: &str, most: usize, may_begin_with_digit: bool| {
        let begins = part
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_lowercase() || (may_begin_with_digit && byte.is_ascii_digit()));
        begins && part.len() <= most && part.bytes().all(is_plain)
    };
    match key.split_once('@') {
        Some((tenant, system)) => is_part(tenant, 241, true) && is_part(system, 14, false),
        None => is_part(key, 256, false),
    }
}

fn is_value(value: &str) -> bool {
    let is_plain = |byte: u8| (0x20..=0x7e).contains(&byte) && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(is_plain) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(parents: &[&str], states: &[&str]) -> TraceContext {
        TraceContext::read(parents.iter().map(|it| it.as_bytes()), states.iter().map(|it| it.as_bytes()), 0.0)
    }

    fn goes_on(parent: &str) -> bool {
        read(&[parent], &[]).parent.is_some()
    }

    #[test]
    fn a_good_parent_is_gone_on_with() {
        let context = read(&[GOOD], &["rojo=00f067aa0ba902b7, congo=t61rcWkgMzE", "tenant@vendor=x y"]);
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent.map(|it| it.to_string()).as_deref(), Some("00f067aa0ba902b7"));
        assert!(context.is_sampled() && Some(context.span) != context.parent);
        assert_eq!(context.state.as_deref(), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,tenant@vendor=x y"));
        let on = context.traceparent(context.span);
        assert_eq!(on, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", context.span));
        assert!(goes_on(&on));
        assert!(!read(&[&GOOD.replace("-01", "-00")], &[]).is_sampled(), "the parent decides");
        // Of flags that nobody knows nothing is said; a later version may say more.
        assert!(read(&[&GOOD.replace("-01", "-fd")], &[]).traceparent(SpanId::fresh()).ends_with("-01"));
        assert!(goes_on(&GOOD.replacen("00", "01", 1)) && goes_on(&format!("cc{}-more", &GOOD[2..])));
    }

    #[test]
    fn whatever_else_begins_a_new_trace() {
        let bad = [
            String::new(),
            "00".to_owned(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            format!("{GOOD}-"),
            format!("{GOOD} "),
            format!(" {GOOD}"),
            format!("cc{}.more", &GOOD[2..]),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD.replacen("4b", "4g", 1),
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", "-0x"),
            format!("00-{}-{}-01", "a".repeat(31), "b".repeat(17)),
        ];
        for parent in bad {
            assert!(!goes_on(&parent), "{parent:?}");
            assert_ne!(read(&[&parent], &["a=b"]).trace, read(&[&parent], &[]).trace);
            assert_eq!(
                read(&[&parent], &["a=b"]).state,
                None,
                "the notes belong to the trace that is not gone on with"
            );
        }
        assert!(read(&[GOOD, GOOD], &[]).parent.is_none(), "two parents are none");
        assert!(TraceContext::read([&b"\xff\xfe"[..]].into_iter(), std::iter::empty(), 0.0).parent.is_none());
    }

    #[test]
    fn notes_that_are_none_are_left_behind_and_the_trace_goes_on() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        let long = format!("k={}", "v".repeat(257));
        let bad = ["a", "A=b", "a=b,a=c", "a=", "a=b=c", "1a=b", "@v=b", "t@=b", "a=\u{e9}", &many.join(","), &long];
        for state in bad {
            let context = read(&[GOOD], &[state]);
            assert!(context.parent.is_some() && context.state.is_none(), "{state:?}");
        }
        assert_eq!(read(&[GOOD], &["", " , ,"]).state, None);
        assert_eq!(read(&[GOOD], &["a=b,,c=d"]).state.as_deref(), Some("a=b,c=d"));
        let wide: Vec<String> = (0..4).map(|n| format!("k{n}={}", "v".repeat(200))).collect();
        assert_eq!(read(&[GOOD], &[&wide.join(",")]).state, None, "more than 512 bytes");
    }

    #[test]
    fn new_traces_are_recorded_in_part() {
        assert!((0..100).all(|_| TraceContext::fresh(1.0).is_sampled() && !TraceContext::fresh(0.0).is_sampled()));
        let n = (0..4000).filter(|_| TraceContext::fresh(0.25).is_sampled()).count();
        assert!((800..1200).contains(&n), "{n} of 4000");
        let context = TraceContext::fresh(0.5);
        assert!(context.parent.is_none() && goes_on(&context.traceparent(context.span)));
    }
}
