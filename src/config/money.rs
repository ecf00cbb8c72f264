//! Settings about money and the books.

use super::raw::ConfigError;
use super::resolve::{read_text, rule};
use super::settings::Raw;
use super::value::{Switch, Written};
use crate::gateway::store::{Durability, OnFailure};
use crate::gateway::{BooksConfig, Period, Price, ShipConfig, nusd, usd};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Of a file that holds an address.
const ADDRESS_BYTES_MAX: u64 = 4096;

/// Dollars, exact to a nano-USD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usd(pub i64);

impl Written for Usd {
    const EXPECTS: &'static str = "an amount of dollars such as 0.15, with at most nine decimals";

    fn from_texts(texts: &[String]) -> Option<Self> {
        nusd(texts.last()?.trim()).map(Usd)
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::String(usd(self.0))
    }
}

/// A time that is mostly given in days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(pub Duration);

impl Written for Days {
    const EXPECTS: &'static str = "a time such as 90d, 12h or 30m, of at least a minute";

    fn from_texts(texts: &[String]) -> Option<Self> {
        let period: Period = texts.last()?.trim().parse().ok()?;
        let ms = u64::try_from(period.approximate_ms()).ok()?;
        (ms >= 60_000).then(|| Days(Duration::from_millis(ms)))
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::String(format!("{}s", self.0.as_secs()))
    }
}

impl Written for SocketAddr {
    const EXPECTS: &'static str = "an address with a port, such as 127.0.0.1:9090";

    fn from_texts(texts: &[String]) -> Option<Self> {
        texts.last()?.trim().parse().ok()
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Written for Durability {
    const EXPECTS: &'static str = "power or process";

    fn from_texts(texts: &[String]) -> Option<Self> {
        match texts.last()?.trim() {
            "power" => Some(Durability::Power),
            "process" => Some(Durability::Process),
            _ => None,
        }
    }

    fn to_toml(&self) -> toml::Value {
        let word = match self {
            Durability::Power => "power",
            Durability::Process => "process",
        };
        toml::Value::String(word.into())
    }
}

impl Written for OnFailure {
    const EXPECTS: &'static str = "reject or degrade";

    fn from_texts(texts: &[String]) -> Option<Self> {
        match texts.last()?.trim() {
            "reject" => Some(OnFailure::Reject),
            "degrade" => Some(OnFailure::Degrade),
            _ => None,
        }
    }

    fn to_toml(&self) -> toml::Value {
        let word = match self {
            OnFailure::Reject => "reject",
            OnFailure::Degrade => "degrade",
        };
        toml::Value::String(word.into())
    }
}

impl Raw {
    /// How the books are kept; `None`: there are none.
    pub fn books(&self) -> Result<Option<BooksConfig>, ConfigError> {
        let granted = self.granted()?;
        let ship = self.ship()?;
        let Some(dir) = self.data_dir.value.clone() else {
            return match ship {
                Some(_) => Err(rule(&self.store, "there are no rows to send without --data-dir")),
                None => Ok(None),
            };
        };
        Ok(Some(BooksConfig {
            dir,
            durability: self.durability.value.unwrap_or_default(),
            on_failure: self.on_store_failure.value.unwrap_or_default(),
            revoke_cuts_streams: self.revoke_cuts_streams.value != Some(Switch(false)),
            retention: self.retention.value.map(|Days(time)| time),
            refund_on_server_fault: self.refund_on_server_fault.value != Some(Switch(false)),
            witness: self.witness.value.clone(),
            ship,
            audit_content: self.audit_content.value == Some(Switch(true)),
            granted,
        }))
    }

    /// The address is in a variable or a file, so that its password is not among the arguments of a process.
    fn ship(&self) -> Result<Option<ShipConfig>, ConfigError> {
        let Some(text) = &self.store.value else { return Ok(None) };
        let found = match text.split_once(':') {
            Some(("env", name)) => {
                std::env::var(name).map_err(|_| rule(&self.store, format!("the variable {name} is not set")))?
            }
            Some(("file", path)) => read_text(Path::new(path), ADDRESS_BYTES_MAX, &self.store)?,
            _ => text.clone(),
        };
        ShipConfig::new(found.trim()).map(Some).map_err(|error| rule(&self.store, error))
    }

    pub(super) fn admin_listen(&self, warnings: &mut Vec<String>) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(address) = self.admin_listen.value else { return Ok(None) };
        if self.data_dir.value.is_none() {
            return Err(rule(&self.admin_listen, "there is nothing to administer without --data-dir"));
        }
        let is_open = !address.ip().is_loopback() && self.tls_cert.value.is_none();
        if is_open && self.admin_insecure.value != Some(Switch(true)) {
            let message = format!(
                "{address} can be reached by others, and its keys would go there in the clear: give the server a \
                 certificate (--tls-cert, --tls-key), which holds there too, or say --admin-insecure"
            );
            return Err(rule(&self.admin_listen, message));
        }
        if is_open {
            warnings.push(format!(
                "the admin API at {address} can be reached by others, and its keys go there in the clear"
            ));
        }
        Ok(Some(address))
    }

    pub(super) fn price(&self) -> Price {
        let nusd = |said: Option<Usd>| said.map(|Usd(n)| n);
        let input = nusd(self.price_input.value).unwrap_or_default();
        Price {
            input,
            cached_input: nusd(self.price_cached_input.value).unwrap_or(input),
            output: nusd(self.price_output.value).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        fn round<T: Written + PartialEq + std::fmt::Debug>(value: T) {
            let texts = super::super::value::toml_texts(&value.to_toml(), T::IS_LIST).expect("a plain value");
            assert_eq!(T::from_texts(&texts), Some(value));
        }
        round(Usd(150_000_000));
        round(Durability::Process);
        round(OnFailure::Degrade);
        round(Days(Duration::from_secs(90 * 86_400)));
        round("127.0.0.1:9090".parse::<SocketAddr>().unwrap());
    }

    #[test]
    fn cached_tokens_cost_as_others_where_nothing_is_said() {
        let mut raw = Raw::default();
        assert!(raw.price().is_free());
        raw.price_input.value = Some(Usd(3));
        assert_eq!(raw.price().cached_input, 3);
        raw.price_cached_input.value = Some(Usd(0));
        assert_eq!(raw.price(), Price { input: 3, cached_input: 0, output: 0 });
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn a_build_without_postgres_says_so_of_a_store() {
        let mut raw = Raw::default();
        raw.store.value = Some("postgres://me:hush@localhost/books".to_owned());
        for dir in [None, Some("books".into())] {
            raw.data_dir.value = dir;
            let error = raw.books().unwrap_err().to_string();
            assert!(error.contains("built without the feature \"postgres\"") && !error.contains("hush"), "{error}");
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_store_is_an_address_or_says_where_one_is_and_its_password_is_not_told() {
        let mut raw = Raw::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        std::fs::write(&path, "postgres://me:hush@localhost/books\n").unwrap();
        raw.store.value = Some(format!("file:{}", path.display()));
        assert!(raw.books().unwrap_err().to_string().contains("without --data-dir"));
        raw.data_dir.value = Some("books".into());
        let found = raw.books().unwrap().unwrap().ship;
        assert_eq!(found, ShipConfig::new("postgres://me:hush@localhost/books").ok());
        for (bad, words) in [
            ("env:HEARTH_NO_SUCH_VARIABLE", "HEARTH_NO_SUCH_VARIABLE is not set"),
            ("mysql://me:hush@localhost/books", "an address like postgres://"),
        ] {
            raw.store.value = Some(bad.to_owned());
            let error = raw.books().unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn an_admin_address_needs_books() {
        let mut raw = Raw::default();
        raw.admin_listen.value = Some("127.0.0.1:1".parse().unwrap());
        assert!(raw.admin_listen(&mut Vec::new()).is_err());
        raw.data_dir.value = Some("books".into());
        assert!(raw.admin_listen(&mut Vec::new()).is_ok() && matches!(raw.books(), Ok(Some(_))));
    }

    #[test]
    fn an_admin_address_that_others_can_reach_needs_a_certificate_or_the_operators_word() {
        let raw = |address: &str| {
            let mut raw = Raw::default();
            raw.admin_listen.value = Some(address.parse().unwrap());
            raw.data_dir.value = Some("books".into());
            raw
        };
        let mut open = raw("0.0.0.0:9090");
        let text = open.admin_listen(&mut Vec::new()).unwrap_err().to_string();
        assert!(text.contains("0.0.0.0:9090 can be reached by others") && text.contains("--admin-insecure"), "{text}");
        let mut warnings = Vec::new();
        open.admin_insecure.value = Some(Switch(true));
        assert!(open.admin_listen(&mut warnings).is_ok() && warnings.len() == 1, "{warnings:?}");
        let mut sealed = raw("192.0.2.1:9090");
        sealed.tls_cert.value = Some("cert.pem".into());
        for mut quiet in [sealed, raw("[::1]:9090")] {
            warnings.clear();
            quiet.admin_insecure.value = None;
            assert!(quiet.admin_listen(&mut warnings).is_ok() && warnings.is_empty(), "{warnings:?}");
        }
    }
}
