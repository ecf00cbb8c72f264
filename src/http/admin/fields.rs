//! A body's fields, taken one by one; what is left over was not known.

use super::super::error::ApiError;
use super::{Identity, Plane};
use crate::dialect::{Fault, parse_object};
use crate::gateway::{nusd, random_base62};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

/// A field that is missing (`None`), null (`Some(None)`), or said.
pub(super) type Said<T> = Option<Option<T>>;

/// A query string, refused in the plane's own words; its type refuses parameters that it does not know, since a filter
/// that is misspelt would let everything through.
pub(super) struct Filter<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Filter<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(found)) => Ok(Self(found)),
            Err(rejection) => {
                let text = rejection.body_text();
                let reason = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                // serde says `name: reason` of a value, and names a parameter that is missing, unknown or there twice.
                let quoted = || reason.split('`').nth(1);
                let named = reason.split_once(": ").map(|(name, _)| name).filter(|name| !name.contains(' '));
                let name = named.or_else(quoted).unwrap_or("query");
                Err(Fault::new(name, "invalid_value", format!("The query string can't be read: {reason}.")).into())
            }
        }
    }
}

/// An act of somebody who may change everything, with its body.
pub(super) struct Ruling(pub Identity, pub Fields);

/// An act of somebody who may change the keys of some team, with its body.
pub(super) struct Managing(pub Identity, pub Fields);

impl FromRequest<Plane> for Ruling {
    type Rejection = ApiError;

    async fn from_request(request: Request, plane: &Plane) -> Result<Self, ApiError> {
        acting(request, plane, Identity::may_rule).await.map(|(identity, fields)| Self(identity, fields))
    }
}

impl FromRequest<Plane> for Managing {
    type Rejection = ApiError;

    async fn from_request(request: Request, plane: &Plane) -> Result<Self, ApiError> {
        acting(request, plane, Identity::may_manage).await.map(|(identity, fields)| Self(identity, fields))
    }
}

/// Who acts comes first: nothing of a body is looked at for somebody who may not.
async fn acting(
    request: Request,
    plane: &Plane,
    may: fn(&Identity) -> Result<(), ApiError>,
) -> Result<(Identity, Fields), ApiError> {
    // Put there by whatever let the request in.
    let identity = request.extensions().get::<Identity>().cloned().ok_or_else(ApiError::internal)?;
    may(&identity)?;
    let body = Bytes::from_request(request, plane).await.map_err(|rejection| {
        let status = rejection.status();
        ApiError::refused(status, "invalid_body", rejection.body_text())
    })?;
    Ok((identity, Fields::parse(&body)?))
}

pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// An empty body is an object without fields.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Ok(Self(Map::new()));
        }
        Ok(Self(parse_object(body)?))
    }

    pub(super) fn of(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Said<T>, ApiError> {
        match self.0.shift_remove(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => match serde_json::from_value(value) {
                Ok(value) => Ok(Some(Some(value))),
                Err(error) => Err(wrong(name, &error.to_string())),
            },
        }
    }

    /// A field of text, left where it is.
    pub(super) fn peek(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A list of texts, left where it is; `None`: it is not said.
    pub(super) fn peek_list(&self, name: &str) -> Option<Vec<&str>> {
        let list = self.0.get(name)?.as_array();
        Some(list.map(|items| items.iter().filter_map(Value::as_str).collect()).unwrap_or_default())
    }

    /// A field that counts only when it is said.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        Ok(self.take(name)?.flatten())
    }

    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        let missing = || Fault::new(name, "missing_required_parameter", format!("{name} is required."));
        Ok(self.optional(name)?.ok_or_else(missing)?)
    }

    /// Text that is read as something else.
    pub(super) fn text<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Said<T>, ApiError> {
        match self.take::<String>(name)? {
            Some(Some(text)) => read(&text).map(|value| Some(Some(value))).map_err(|message| wrong(name, &message)),
            Some(None) => Ok(Some(None)),
            None => Ok(None),
        }
    }

    /// Dollars, as a number or a decimal text.
    pub(super) fn money(&mut self, name: &str) -> Result<Said<i64>, ApiError> {
        let read = |value: Value| match value {
            Value::Number(n) => dollars(&n),
            Value::String(text) => nusd(&text),
            _ => None,
        };
        match self.take::<Value>(name)? {
            Some(Some(value)) => match read(value) {
                Some(nusd) => Ok(Some(Some(nusd))),
                None => Err(wrong(name, "an amount of dollars has at most nine decimals and is at most a billion")),
            },
            Some(None) => Ok(Some(None)),
            None => Ok(None),
        }
    }

    /// What `read` makes of the fields, which are all that there are.
    pub(super) fn whole<T>(mut self, read: fn(&mut Self) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let value = read(&mut self)?;
        self.finish().map(|()| value)
    }

    /// The id that something new is to have; one by chance where none is said.
    pub(super) fn new_id(&mut self, name: &str) -> Result<String, ApiError> {
        match self.optional(name)? {
            Some(id) => Ok(id),
            None => random_base62(12).map_err(|_| ApiError::internal()),
        }
    }

    /// Everything was taken, or the first field that nobody knows is named.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let message = format!("{name:?} is not a field of this request.");
                Err(Fault::new(name.clone(), "unknown_parameter", message).into())
            }
        }
    }
}

/// A number in JSON as nano-USD. What was written with an exponent comes by way of its nine decimals.
fn dollars(n: &Number) -> Option<i64> {
    let text = n.to_string();
    nusd(&text).or_else(|| text.contains(['e', 'E']).then(|| nusd(&format!("{:.9}", n.as_f64()?)))?)
}

/// A number of a query string, from 1 to `most`; `unsaid` where it is missing.
pub(super) fn from_one<T: PartialOrd + From<u8> + std::fmt::Display>(
    name: &str,
    said: Option<T>,
    unsaid: T,
    most: T,
) -> Result<T, ApiError> {
    match said {
        None => Ok(unsaid),
        Some(n) if n < T::from(1) || n > most => Err(wrong(name, &format!("it is a number from 1 to {most}"))),
        Some(n) => Ok(n),
    }
}

pub(super) fn wrong(name: &str, why: &str) -> ApiError {
    Fault::new(name, "invalid_value", format!("{name}: {why}.")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_in_json_is_exact() {
        let money = |text: &str| {
            let mut fields = Fields::parse(format!("{{\"m\":{text}}}").as_bytes()).unwrap();
            fields.money("m").ok()
        };
        let (is, no) = (|n: i64| Some(Some(Some(n))), None);
        for (text, got) in [
            ("10", is(10_000_000_000)),
            ("0.1", is(100_000_000)),
            ("\"0.000000001\"", is(1)),
            ("1e-7", is(100)),
            ("12345.678901", is(12_345_678_901_000)),
            ("null", Some(Some(None))),
            ("-1", no),
            ("1e12", no),
            ("true", no),
        ] {
            assert_eq!(money(text), got, "{text}");
        }
    }

    #[test]
    fn what_nobody_takes_is_refused() {
        let mut fields = Fields::parse(br#"{"a":1,"b":null}"#).unwrap();
        assert_eq!(fields.take::<u32>("a").unwrap(), Some(Some(1)));
        assert_eq!(fields.take::<u32>("b").unwrap(), Some(None));
        assert_eq!(fields.take::<u32>("c").unwrap(), None);
        assert!(fields.finish().is_ok());
        let mut fields = Fields::parse(br#"{"a":"x","allowed_routes":["*"]}"#).unwrap();
        assert!(fields.take::<u32>("a").is_err());
        let error = fields.finish().expect_err("unknown");
        assert_eq!(error.problem.param.as_deref(), Some("allowed_routes"));
    }
}
