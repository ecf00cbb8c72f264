//! How long a model stays loaded after a request.

use crate::dialect::Fault;
use crate::dialect::fields::{Object, invalid_type};
use serde_json::Value;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    Forever,
    /// 0: unload after this request.
    For(Duration),
}

impl KeepAlive {
    /// Longer ones (Go's durations end there, too) are for ever.
    const SECONDS_MAX: f64 = 9.2e9;

    fn of_seconds(seconds: f64) -> Self {
        if !(0.0..=Self::SECONDS_MAX).contains(&seconds) {
            return KeepAlive::Forever;
        }
        KeepAlive::For(Duration::from_secs_f64(seconds))
    }
}

/// A number of seconds, or one of Go's durations (`"5m"`, `"1h30m"`, `"300ms"`); negative ones are for ever.
pub(super) fn keep_alive(body: &mut Object) -> Result<Option<KeepAlive>, Fault> {
    const FORMS: &str = "a number of seconds or a duration like \"5m\"";
    let path = body.path("keep_alive");
    match body.take("keep_alive") {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64().map(KeepAlive::of_seconds)),
        Some(Value::String(text)) => match seconds(&text) {
            Some(seconds) => Ok(Some(KeepAlive::of_seconds(seconds))),
            None => {
                let shown: String = text.chars().take(64).collect();
                let message = format!("{path} must be {FORMS}, but it is {shown:?}.");
                Err(Fault::new(path, "invalid_value", message))
            }
        },
        Some(other) => Err(invalid_type(path, FORMS, &other)),
    }
}

/// Source: Go's time.ParseDuration; a number without a unit counts seconds.
fn seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut sum = 0.0;
    loop {
        let end = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        if rest.is_empty() && sum == 0.0 {
            return Some(sign * number);
        }
        let end = rest.find(is_number).unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..end])?;
        sum += number * unit;
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(sign * sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Option<KeepAlive>, Fault> {
        keep_alive(&mut Object::at("", json!({ "keep_alive": value })).unwrap())
    }

    /// OLLA-11.
    #[test]
    fn numbers_and_durations() {
        let time = |ms: u64| Ok(Some(KeepAlive::For(Duration::from_millis(ms))));
        for (value, ms) in [
            (json!(0), 0),
            (json!("0"), 0),
            (json!("0s"), 0),
            (json!(1800), 1_800_000),
            (json!(0.5), 500),
            (json!("5m"), 300_000),
            (json!("1h30m"), 5_400_000),
            (json!("300ms"), 300),
            (json!("1.5s"), 1500),
            (json!("60"), 60_000),
        ] {
            assert_eq!(read(value), time(ms));
        }
        for value in [json!(-1), json!("-1"), json!("-1m"), json!(1e300), json!("100000000h")] {
            assert_eq!(read(value), Ok(Some(KeepAlive::Forever)));
        }
        assert_eq!(read(Value::Null), Ok(None));
        for value in [json!(""), json!("soon"), json!("5 m"), json!("5m3"), json!("m"), json!("1.2.3s"), json!("--5s")]
        {
            assert_eq!(read(value.clone()).unwrap_err().code, Some("invalid_value"), "{value}");
        }
        assert_eq!(read(json!([])).unwrap_err().code, Some("invalid_type"));
    }
}
