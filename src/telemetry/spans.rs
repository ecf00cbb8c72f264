//! A span as plain data, before anybody has decided how it travels.

use super::context::{SpanId, TraceContext};
use std::time::SystemTime;

#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub context: TraceContext,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    pub name: String,
    pub kind: SpanKind,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    pub events: Vec<(&'static str, SystemTime)>,
    pub has_failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Somebody asked us.
    Server,
    /// We ask somebody.
    Client,
    Internal,
}

/// What an attribute says. Texts are words of ours, the operator's, or names that a client gave and that were checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Texts(Vec<&'static str>),
    Whole(i64),
    Decimal(f64),
    Yes(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<Vec<&'static str>> for Value {
    fn from(texts: Vec<&'static str>) -> Self {
        Value::Texts(texts)
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Value::Whole(n.into())
    }
}

impl From<i32> for Value {
    fn from(n: i32) -> Self {
        Value::Whole(n.into())
    }
}

impl From<u16> for Value {
    fn from(n: u16) -> Self {
        Value::Whole(n.into())
    }
}

impl From<f32> for Value {
    /// 0.7 stays 0.7: the decimal digits are what the client wrote.
    fn from(n: f32) -> Self {
        Value::Decimal(n.to_string().parse().unwrap_or_else(|_| n.into()))
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        Value::Decimal(n)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Value::Yes(yes)
    }
}

impl Span {
    pub fn say(&mut self, name: &'static str, value: impl Into<Value>) {
        self.attributes.push((name, value.into()));
    }

    /// Says something, if there is something to say.
    pub fn may_say(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.say(name, value);
        }
    }
}
