//! When a budget begins anew: windows of a [`Period`], computed from the time of an event and nothing else.
//!
//! # Design
//! Windows lie end to end and each instant is in exactly one, so a budget that is looked at after a long pause, after a
//! restart or twice at once finds the same window, and no job has to run at midnight. Rolling windows are counted from the
//! scope's creation; seconds to weeks of them have one length, months follow the calendar of the zone. Calendar windows
//! follow the zone's own days, so a day may have 23 or 25 hours; windows below a day begin anew with each day.

use crate::gateway::spec::{Period, PeriodUnit};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

const DAY_MS: i64 = 86_400_000;

/// From when on, and until when, a budget's spending counts together: unix milliseconds, the end not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeriodWindow {
    pub start_ms: i64,
    pub end_ms: i64,
}

impl PeriodWindow {
    /// A budget without a period: one window for ever.
    pub const EVER: Self = Self { start_ms: i64::MIN, end_ms: i64::MAX };

    pub fn holds(self, at_ms: i64) -> bool {
        (self.start_ms..self.end_ms).contains(&at_ms)
    }
}

/// Whether `name` is a time zone that windows can be counted in.
pub fn is_zone(name: &str) -> bool {
    TimeZone::get(name).is_ok()
}

/// The window of `period` that `at_ms` is in, for a scope that was created at `created_ms`.
///
/// Times beyond jiff's years (-9999..=9999) and zones that nobody knows count in UTC days of 86,400 s.
pub fn window(period: &Period, created_ms: i64, at_ms: i64) -> PeriodWindow {
    let n = i64::from(period.n.max(1));
    let unit_ms = match period.unit {
        PeriodUnit::Second => 1000,
        PeriodUnit::Minute => 60_000,
        PeriodUnit::Hour => 3_600_000,
        PeriodUnit::Day => DAY_MS,
        PeriodUnit::Week => 7 * DAY_MS,
        PeriodUnit::Month => 0,
    };
    let zone = || period.tz.as_deref().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
    let found = match (period.calendar, period.unit) {
        (false, PeriodUnit::Month) => rolling_months(n, &zone(), created_ms, at_ms),
        (false, _) => Some(steps(n * unit_ms, created_ms, at_ms)),
        (true, PeriodUnit::Month) => calendar_months(n, &zone(), at_ms),
        (true, PeriodUnit::Day) => calendar_days(n, 0, &zone(), at_ms),
        // 1970 began on a Thursday.
        (true, PeriodUnit::Week) => calendar_days(7 * n, 4, &zone(), at_ms),
        (true, _) if n * unit_ms < DAY_MS => within_day(n * unit_ms, &zone(), at_ms),
        (true, _) => Some(steps(n * unit_ms, 0, at_ms)),
    };
    found.unwrap_or_else(|| steps((n * unit_ms).max(DAY_MS), 0, at_ms))
}

/// Windows of one length from `from_ms` on, in both directions.
fn steps(len_ms: i64, from_ms: i64, at_ms: i64) -> PeriodWindow {
    let len_ms = len_ms.max(1);
    let start_ms = at_ms.saturating_sub(at_ms.saturating_sub(from_ms).rem_euclid(len_ms));
    PeriodWindow { start_ms, end_ms: start_ms.saturating_add(len_ms) }
}

/// The `n`-th day after 1970-01-01 began then in this zone.
fn midnight_ms(n: i64, zone: &TimeZone) -> Option<i64> {
    let day = EPOCH.checked_add(Span::new().try_days(n).ok()?).ok()?;
    start_ms(day, zone)
}

const EPOCH: Date = Date::constant(1970, 1, 1);

fn start_ms(day: Date, zone: &TimeZone) -> Option<i64> {
    Some(day.to_zoned_datetime(zone.clone()).ok()?.timestamp().as_millisecond())
}

fn local_day(zone: &TimeZone, at_ms: i64) -> Option<Date> {
    Some(Timestamp::from_millisecond(at_ms).ok()?.to_zoned_datetime(zone.clone()).date())
}

fn days_since_epoch(day: Date) -> i64 {
    day.duration_since(EPOCH).as_hours() / 24
}

/// Windows of `n` local days, of which one begins `first` days after the epoch.
fn calendar_days(n: i64, first: i64, zone: &TimeZone, at_ms: i64) -> Option<PeriodWindow> {
    let day = days_since_epoch(local_day(zone, at_ms)?);
    let start = day - (day - first).rem_euclid(n);
    Some(PeriodWindow { start_ms: midnight_ms(start, zone)?, end_ms: midnight_ms(start + n, zone)? })
}

/// Windows of less than a day: counted from midnight, the day's last one may be cut.
fn within_day(len_ms: i64, zone: &TimeZone, at_ms: i64) -> Option<PeriodWindow> {
    let day = calendar_days(1, 0, zone, at_ms)?;
    let window = steps(len_ms, day.start_ms, at_ms);
    Some(PeriodWindow { end_ms: window.end_ms.min(day.end_ms), ..window })
}

fn calendar_months(n: i64, zone: &TimeZone, at_ms: i64) -> Option<PeriodWindow> {
    let day = local_day(zone, at_ms)?;
    let month = i64::from(day.year()) * 12 + i64::from(day.month()) - 1;
    let start = month - (month - 1970 * 12).rem_euclid(n);
    let first_of = |month: i64| {
        let (year, month) = (month.div_euclid(12), month.rem_euclid(12) + 1);
        start_ms(Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, 1).ok()?, zone)
    };
    Some(PeriodWindow { start_ms: first_of(start)?, end_ms: first_of(start + n)? })
}

/// Counted from the creation itself, so that the 31st comes back after a shorter month.
fn rolling_months(n: i64, zone: &TimeZone, created_ms: i64, at_ms: i64) -> Option<PeriodWindow> {
    let created = Timestamp::from_millisecond(created_ms).ok()?.to_zoned_datetime(zone.clone());
    let begin = |k: i64| {
        let months = Span::new().try_months(k.checked_mul(n)?).ok()?;
        Some(created.checked_add(months).ok()?.timestamp().as_millisecond())
    };
    let mut k = (at_ms.saturating_sub(created_ms)).div_euclid(31 * DAY_MS * n);
    // Months are at most 31 days long: `k` is too small at most, by a twelfth part.
    while begin(k)? > at_ms {
        k -= 1;
    }
    let mut end_ms = begin(k + 1)?;
    while end_ms <= at_ms {
        k += 1;
        end_ms = begin(k + 1)?;
    }
    Some(PeriodWindow { start_ms: begin(k)?, end_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn period(text: &str, tz: Option<&str>) -> Period {
        Period { calendar: tz.is_some(), tz: tz.map(str::to_owned), ..text.parse().unwrap() }
    }

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn check(period: &Period, at: &str, from: &str, to: &str) {
        let expected = PeriodWindow { start_ms: ms(from), end_ms: ms(to) };
        assert_eq!(window(period, ms("2024-01-31T10:00:00Z"), ms(at)), expected, "{period:?} at {at}");
    }

    #[test]
    fn a_day_of_the_calendar_has_as_many_hours_as_its_zone_gives_it() {
        let day = period("1d", Some("Europe/Berlin"));
        check(&day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"); // 23 hours
        check(&day, "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"); // 25 hours
        check(&day, "2026-10-24T21:59:59Z", "2026-10-23T22:00:00Z", "2026-10-24T22:00:00Z");
        // A zone whose clocks go forward at midnight itself: the day begins at one o'clock.
        let day = period("1d", Some("America/Santiago"));
        check(&day, "2026-09-06T12:00:00Z", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z");
        let hour = period("1h", Some("Asia/Kolkata"));
        check(&hour, "2026-05-01T10:10:00Z", "2026-05-01T09:30:00Z", "2026-05-01T10:30:00Z");
        let utc = |text| period(text, Some("UTC"));
        check(&utc("6h"), "2026-05-01T10:10:00Z", "2026-05-01T06:00:00Z", "2026-05-01T12:00:00Z");
        check(&utc("5h"), "2026-05-01T23:00:00Z", "2026-05-01T20:00:00Z", "2026-05-02T00:00:00Z"); // the day's last
        check(&utc("24h"), "2026-05-01T10:00:00Z", "2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z");
        // A day's length or more: from the epoch on, whatever the zone.
        let berlin = period("24h", Some("Europe/Berlin"));
        check(&berlin, "2026-05-01T23:00:00Z", "2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z");
        check(&utc("30h"), "2026-05-01T10:00:00Z", "2026-04-30T18:00:00Z", "2026-05-02T00:00:00Z");
    }

    #[test]
    fn times_beyond_the_calendar_count_in_days() {
        for (text, n_days) in [("2d", 2), ("6h", 1), ("1mo", 1)] {
            let found = window(&period(text, Some("UTC")), 0, i64::MAX / 2);
            assert_eq!(found.end_ms - found.start_ms, n_days * DAY_MS, "{text}");
            assert!(found.holds(i64::MAX / 2) && found.start_ms % (n_days * DAY_MS) == 0, "{text}");
        }
    }

    #[test]
    fn months_and_weeks_follow_the_calendar() {
        // Before the creation too, where the first guess is a month late.
        check(&period("1mo", None), "2023-10-31T00:00:00Z", "2023-09-30T10:00:00Z", "2023-10-31T10:00:00Z");
        check(&period("1w", None), "2024-02-10T00:00:00Z", "2024-02-07T10:00:00Z", "2024-02-14T10:00:00Z");
        let month = period("1mo", Some("UTC"));
        check(&month, "2028-02-29T23:59:59Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z");
        check(&month, "2027-12-31T23:59:59Z", "2027-12-01T00:00:00Z", "2028-01-01T00:00:00Z");
        check(&period("3mo", Some("UTC")), "2026-05-05T00:00:00Z", "2026-04-01T00:00:00Z", "2026-07-01T00:00:00Z");
        check(&period("7mo", Some("UTC")), "2026-05-05T00:00:00Z", "2026-01-01T00:00:00Z", "2026-08-01T00:00:00Z");
        check(&period("1w", Some("UTC")), "2026-11-25T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z");
        check(&period("1w", Some("UTC")), "1969-12-31T00:00:00Z", "1969-12-29T00:00:00Z", "1970-01-05T00:00:00Z");
    }

    #[test]
    fn rolling_months_keep_the_day_they_were_made_on() {
        let month = period("1mo", None);
        check(&month, "2024-02-29T09:59:59Z", "2024-01-31T10:00:00Z", "2024-02-29T10:00:00Z");
        check(&month, "2024-02-29T10:00:00Z", "2024-02-29T10:00:00Z", "2024-03-31T10:00:00Z");
        check(&month, "2025-02-28T10:00:00Z", "2025-02-28T10:00:00Z", "2025-03-31T10:00:00Z");
        check(&month, "2024-01-01T00:00:00Z", "2023-12-31T10:00:00Z", "2024-01-31T10:00:00Z");
        check(&period("30d", None), "2024-03-01T10:00:00Z", "2024-03-01T10:00:00Z", "2024-03-31T10:00:00Z");
        check(&period("30s", None), "2024-01-31T10:00:45Z", "2024-01-31T10:00:30Z", "2024-01-31T10:01:00Z");
    }

    #[test]
    fn what_lies_outside_of_the_calendar_has_a_window_too() {
        for at_ms in [i64::MIN, i64::MAX, 0] {
            for period in [period("1mo", None), period("1d", Some("Europe/Berlin")), period("2w", Some("no/zone"))] {
                let window = window(&period, 0, at_ms);
                assert!(window.start_ms <= at_ms && window.start_ms < window.end_ms, "{period:?} {at_ms} {window:?}");
            }
        }
        assert!(is_zone("Europe/Berlin") && !is_zone("Mars/Olympus"));
    }

    proptest! {
        #[test]
        fn windows_lie_end_to_end(
            at_ms in -2_000_000_000_000i64..4_000_000_000_000,
            created_ms in 0i64..2_000_000_000_000,
            n in 1u32..40,
            unit in 0usize..6,
            zone in 0usize..5,
        ) {
            let unit = [
                PeriodUnit::Second, PeriodUnit::Minute, PeriodUnit::Hour, PeriodUnit::Day, PeriodUnit::Week,
                PeriodUnit::Month,
            ][unit];
            let tz = [None, Some("UTC"), Some("Europe/Berlin"), Some("Australia/Lord_Howe"), Some("America/Havana")];
            let period = Period { n, unit, calendar: zone > 0, tz: tz[zone].map(str::to_owned) };
            let here = window(&period, created_ms, at_ms);
            prop_assert!(here.holds(at_ms));
            let next = window(&period, created_ms, here.end_ms);
            prop_assert_eq!(next.start_ms, here.end_ms);
            prop_assert_eq!(window(&period, created_ms, here.end_ms - 1), here);
            prop_assert_eq!(window(&period, created_ms, here.start_ms), here);
        }
    }
}
