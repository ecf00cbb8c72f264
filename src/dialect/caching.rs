//! `cache`: what a client wants of the cache of answers, in LiteLLM's words.

use super::fields::Object;
use super::{Fault, Ignored};
use crate::chat::CacheAsk;

/// Takes the field from any request that generates.
pub(super) fn cache(body: &mut Object, ignored: &mut Ignored) -> Result<CacheAsk, Fault> {
    let Some(mut cache) = body.object("cache")? else { return Ok(CacheAsk::default()) };
    let mut seconds = |key: &str| {
        let seconds = cache.integer(key, 0, u32::MAX.into())?;
        Ok::<_, Fault>(seconds.and_then(|seconds| u32::try_from(seconds).ok()))
    };
    let (ttl_s, max_age_s) = (seconds("ttl")?, seconds("s-maxage")?);
    let namespace = cache.string("namespace")?;
    if let Some(text) = namespace.as_ref().filter(|text| text.len() > CacheAsk::NAMESPACE_BYTES_MAX) {
        let (path, max) = (cache.path("namespace"), CacheAsk::NAMESPACE_BYTES_MAX);
        let message = format!("{path} may have at most {max} bytes, but it has {}.", text.len());
        return Err(Fault::new(path, "string_above_max_length", message));
    }
    let ask = CacheAsk {
        ttl_s,
        max_age_s,
        no_cache: cache.bool("no-cache")?.unwrap_or(false),
        no_store: cache.bool("no-store")?.unwrap_or(false),
        namespace,
    };
    cache.finish(ignored);
    Ok(ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(CacheAsk, Option<String>), Fault> {
        let mut ignored = Ignored::default();
        let ask = cache(&mut Object::parse(text.as_bytes())?, &mut ignored)?;
        Ok((ask, ignored.header()))
    }

    #[test]
    fn litellms_words_are_read_and_others_listed() {
        let text =
            r#"{"cache":{"ttl":60,"s-maxage":5,"no-cache":true,"no-store":true,"namespace":"n","use-cache":true}}"#;
        let ask = CacheAsk {
            ttl_s: Some(60),
            max_age_s: Some(5),
            no_cache: true,
            no_store: true,
            namespace: Some("n".into()),
        };
        assert_eq!(read(text), Ok((ask, Some("cache.use-cache".to_owned()))));
        assert_eq!(read("{}"), Ok((CacheAsk::default(), None)));
    }

    #[test]
    fn wrong_values_are_refused_at_their_place() {
        let param = |text: &str| read(text).expect_err("a fault").param;
        assert_eq!(param(r#"{"cache":true}"#).as_deref(), Some("cache"));
        assert_eq!(param(r#"{"cache":{"ttl":-1}}"#).as_deref(), Some("cache.ttl"));
        let long = format!(r#"{{"cache":{{"namespace":"{}"}}}}"#, "x".repeat(257));
        assert_eq!(param(&long).as_deref(), Some("cache.namespace"));
    }
}
