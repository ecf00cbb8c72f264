//! Reading a JSON object field by field, with the exact path of whatever is wrong.

use super::{Fault, Ignored};
use serde_json::{Map, Value};

/// An object being read: taking a field removes it, and what is left at the end is unknown. `null` means absent.
#[derive(Debug)]
pub struct Object {
    path: String,
    map: Map<String, Value>,
}

impl Object {
    /// The body itself; see `json::parse_object` for what it refuses.
    pub fn parse(body: &[u8]) -> Result<Self, Fault> {
        Ok(Self { path: String::new(), map: super::json::parse_object(body)? })
    }

    /// The object at `path`, or `invalid_type`.
    pub fn at(path: impl Into<String>, value: Value) -> Result<Self, Fault> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(invalid_type(path, "an object", &other)),
        }
    }

    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether a field is given.
    pub fn has(&self, key: &str) -> bool {
        #[cfg(test)]
        asked::note(self.path(key));
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Takes a field of any type. Removal swaps, so a body with very many fields stays cheap.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        #[cfg(test)]
        asked::note(self.path(key));
        self.map.swap_remove(key).filter(|value| !value.is_null())
    }

    /// Takes fields that are accepted and have no effect.
    pub fn accept(&mut self, keys: &[&str]) {
        for key in keys {
            #[cfg(test)]
            asked::note(self.path(key));
            self.map.swap_remove(*key);
        }
    }

    /// The person or program that the client acts for: `safety_identifier`, or else OpenAI's older `user`. Anything but a
    /// text has no effect.
    pub fn end_user(&mut self) -> Option<String> {
        let (new, old) = (self.take("safety_identifier"), self.take("user"));
        [new, old].into_iter().flatten().find_map(|value| name_of(&value))
    }

    /// The same where an API has `user` alone.
    pub fn user(&mut self) -> Option<String> {
        self.take("user").and_then(|value| name_of(&value))
    }

    pub fn bool(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(invalid_type(self.path(key), "a boolean", &other)),
        }
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(invalid_type(self.path(key), "a string", &other)),
        }
    }

    pub fn array(&mut self, key: &str) -> Result<Option<Vec<Value>>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(invalid_type(self.path(key), "an array", &other)),
        }
    }

    pub fn object(&mut self, key: &str) -> Result<Option<Object>, Fault> {
        self.take(key).map(|value| Object::at(self.path(key), value)).transpose()
    }

    /// A number that an `f32` can hold.
    pub fn decimal(&mut self, key: &str) -> Result<Option<f32>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let path = self.path(key);
        let number = value.as_f64().ok_or_else(|| invalid_type(&path, "a number", &value))?;
        let limit = f64::from(f32::MAX);
        if number > limit {
            let message = format!("{path} must be at most {limit:e}, but it is {number:e}.");
            return Err(Fault::new(path, "decimal_above_max_value", message));
        }
        if number < -limit {
            let message = format!("{path} must be at least {:e}, but it is {number:e}.", -limit);
            return Err(Fault::new(path, "decimal_below_min_value", message));
        }
        Ok(Some(number as f32))
    }

    /// An integer between the limits, which are inclusive.
    pub fn integer(&mut self, key: &str, min: i64, max: i64) -> Result<Option<i64>, Fault> {
        self.take(key).map(|value| integer(self.path(key), &value, min, max)).transpose()
    }

    /// An integer that fits 32 bits; tighter limits are `chat::check`'s.
    pub fn int32(&mut self, key: &str) -> Result<Option<i32>, Fault> {
        Ok(self.integer(key, i32::MIN.into(), i32::MAX.into())?.map(|value| value as i32))
    }

    /// A required field is missing.
    pub fn missing(&self, key: &str) -> Fault {
        let path = self.path(key);
        let message = format!("Missing required parameter: {path}.");
        Fault::new(path, "missing_required_parameter", message)
    }

    /// A known field asks for what this server can't do.
    pub fn unsupported(&self, key: &str, why: &str) -> Fault {
        let path = self.path(key);
        let message = format!("{path} is not supported: {why}.");
        Fault::new(path, "unsupported_parameter", message)
    }

    /// Ends the reading: what was not taken is unknown.
    pub fn finish(self, ignored: &mut Ignored) {
        for (key, value) in &self.map {
            if !value.is_null() {
                ignored.add(&self.path(key));
            }
        }
    }
}

/// A client's name for somebody, cut to a length that tells them apart; `None` for what is no such name.
pub fn name_of(value: &Value) -> Option<String> {
    const CHARS_MAX: usize = 256;
    value.as_str().filter(|name| !name.is_empty()).map(|name| name.chars().take(CHARS_MAX).collect())
}

/// The integer at `path`. A number without a fractional part is one, however it is written (`1.0`, `-0`).
pub fn integer(path: String, value: &Value, min: i64, max: i64) -> Result<i64, Fault> {
    let number = match value {
        Value::Number(number) => number,
        other => return Err(invalid_type(path, "an integer", other)),
    };
    let wide = number.as_i128().or_else(|| number.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i128));
    let Some(wide) = wide else { return Err(invalid_type(path, "an integer", value)) };
    if wide < i128::from(min) {
        let message = format!("{path} must be at least {min}, but it is {number}.");
        return Err(Fault::new(path, "integer_below_min_value", message));
    }
    if wide > i128::from(max) {
        let message = format!("{path} must be at most {max}, but it is {number}.");
        return Err(Fault::new(path, "integer_above_max_value", message));
    }
    Ok(wide as i64)
}

pub fn invalid_type(path: impl Into<String>, expected: &str, got: &Value) -> Fault {
    let path = path.into();
    let message = format!("Invalid type for {path}: expected {expected}, but got {}.", type_name(got));
    Fault::new(path, "invalid_type", message)
}

/// An unknown value of an enumeration. The value is the client's text and repeated only as far as it is short.
pub fn invalid_value(path: impl Into<String>, got: &str, allowed: &str) -> Fault {
    let path = path.into();
    let shown: String = got.chars().take(64).collect();
    let message = format!("Invalid value for {path}: {shown:?}. Supported values are: {allowed}.");
    Fault::new(path, "invalid_value", message)
}

pub fn empty_array(path: impl Into<String>) -> Fault {
    let path = path.into();
    let message = format!("{path} is an empty array; at least 1 entry is needed.");
    Fault::new(path, "empty_array", message)
}

/// A count limit was passed.
pub fn too_many(path: impl Into<String>, n: usize, max: usize) -> Fault {
    let path = path.into();
    let message = format!("{path} may have at most {max} entries, but it has {n}.");
    Fault::new(path, "array_above_max_length", message)
}

pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What readers ask for, so that a test can hold the document of the API against them.
#[cfg(test)]
pub(crate) mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static PATHS: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
    }

    pub(super) fn note(path: String) {
        PATHS.with_borrow_mut(|paths| paths.as_mut().map(|paths| paths.insert(path)));
    }

    /// Every path that was asked for while `read` ran.
    pub(crate) fn during(read: impl FnOnce()) -> BTreeSet<String> {
        PATHS.set(Some(BTreeSet::new()));
        read();
        PATHS.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn null_is_absent_and_leaves_no_trace() {
        let mut o = object(r#"{"a":null,"b":null}"#);
        assert_eq!(o.bool("a"), Ok(None));
        let mut ignored = Ignored::default();
        o.finish(&mut ignored);
        assert_eq!(ignored.header(), None);
    }

    #[test]
    fn wrong_types_name_the_whole_path() {
        let mut root = object(r#"{"a":{"b":"x"}}"#);
        let mut inner = root.object("a").unwrap().unwrap();
        let fault = inner.decimal("b").unwrap_err();
        assert_eq!((fault.param.as_deref(), fault.code), (Some("a.b"), Some("invalid_type")));
        assert_eq!(fault.message, "Invalid type for a.b: expected a number, but got a string.");
    }

    #[test]
    fn integers_are_exact_and_bounded() {
        let read = |text: &str| object(&format!("{{\"n\":{text}}}")).integer("n", -1, 10);
        assert_eq!(read("10"), Ok(Some(10)));
        assert_eq!(read("10.0"), Ok(Some(10)));
        assert_eq!(read("-0"), Ok(Some(0)));
        assert_eq!(read("11").unwrap_err().code, Some("integer_above_max_value"));
        assert_eq!(read("18446744073709551615").unwrap_err().code, Some("integer_above_max_value"));
        assert_eq!(read("-1e300").unwrap_err().code, Some("integer_below_min_value"));
        assert_eq!(read("1.5").unwrap_err().code, Some("invalid_type"));
        assert_eq!(read("true").unwrap_err().code, Some("invalid_type"));
    }

    #[test]
    fn decimals_past_f32_are_refused_with_the_value_given() {
        let fault = object(r#"{"t":1e308}"#).decimal("t").unwrap_err();
        assert_eq!(fault.code, Some("decimal_above_max_value"));
        assert!(fault.message.contains("1e308"), "{}", fault.message);
    }

    #[test]
    fn what_is_not_taken_is_listed_with_its_path() {
        let mut root = object(r#"{"x":1,"o":{"y":2}}"#);
        let inner = root.object("o").unwrap().unwrap();
        let mut ignored = Ignored::default();
        inner.finish(&mut ignored);
        root.finish(&mut ignored);
        assert_eq!(ignored.header().as_deref(), Some("o.y, x"));
    }
}
