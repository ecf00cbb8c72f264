//! Bytes → JSON tree, strictly: one object, UTF-8, no duplicate keys, bounded depth and size.
//!
//! # Design
//! `serde_json::Value` alone keeps the last of two equal keys without a word and may take seventy times the body's size
//! in memory (`[0,0,0,…]`). Reading through this visitor costs the same and refuses both.

use super::Fault;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Values in one body (about 80 bytes of memory each). A prompt of a million token ids fits.
const VALUES_MAX: usize = 1_500_000;

/// The body as one JSON object.
pub fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    match parse(body)? {
        Value::Object(map) => Ok(map),
        other => Err(Fault::body(format!(
            "The request body must be a JSON object, but it is {}.",
            super::fields::type_name(&other)
        ))),
    }
}

/// The body as one JSON value. Depth is limited to 128 by serde_json.
pub fn parse(body: &[u8]) -> Result<Value, Fault> {
    if body.is_empty() {
        return Err(Fault::body("The request body is empty; a JSON object was expected."));
    }
    parse_value(body).map_err(|error| Fault::body(format!("The request body is not valid JSON: {error}.")))
}

/// Any JSON value, as strictly.
pub(super) fn parse_value(text: &[u8]) -> Result<Value, serde_json::Error> {
    let n_left = Cell::new(VALUES_MAX);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Node { n_left: &n_left }.deserialize(&mut reader)?;
    reader.end().map(|()| value)
}

#[derive(Clone, Copy)]
struct Node<'a> {
    n_left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        let n_left = self.n_left.get().checked_sub(1).ok_or_else(|| {
            D::Error::custom(format_args!("it holds more than {VALUES_MAX} values, and that is the limit"))
        })?;
        self.n_left.set(n_left);
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom("an object has the same key twice"));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> String {
        let fault = parse_object(body).expect_err("should be refused");
        assert_eq!((fault.param, fault.code), (None, None));
        fault.message
    }

    #[test]
    fn a_plain_object_is_read_as_serde_json_reads_it() {
        let text = r#"{"a":[1,-2,1.5,null,true,"x\ud83d\ude00"],"b":{"c":{}}}"#;
        let map = parse_object(text.as_bytes()).unwrap();
        assert_eq!(Value::Object(map), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn hostile_bodies_are_refused() {
        refused(b"");
        refused(b"[]");
        refused(b"{} {}");
        refused(b"{\"a\":NaN}");
        refused(b"{\"a\":1e400}");
        refused(b"{\"a\":\"\xff\"}");
        refused(br#"{"a":"\ud83d"}"#);
        refused(b"\xef\xbb\xbf{}");
        assert!(refused(br#"{"a":1,"b":{"x":1,"x":2}}"#).contains("twice"));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(refused(deep.as_bytes()).contains("recursion"));
        let many = format!("{{\"a\":[{}0]}}", "0,".repeat(VALUES_MAX));
        assert!(refused(many.as_bytes()).contains("1500000"));
    }
}
