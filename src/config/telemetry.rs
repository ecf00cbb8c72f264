//! The groups "Traces" and "Metrics", and `[telemetry]` of the file, where they and "Log" may also stand.

use super::raw::{ConfigError, Origin, Said, nearest};
use super::resolve::{on, rule};
use super::settings::{Raw, SETTINGS};
use super::tables::{line_of, misplaced};
use super::upstreams::secret_text;
use super::value::toml_texts;
use crate::gateway::{BaseUrl, Collector, CollectorConfig};
use crate::telemetry::metrics::{Compat, MetricsConfig};
use crate::telemetry::otlp::{self, OtlpConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;

/// The table's key.
pub(super) const KEY: &str = "telemetry";
/// Whose settings it may hold.
const GROUPS: [&str; 3] = ["Log", "Traces", "Metrics"];

/// Where traces go, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpSetup {
    pub collector: CollectorConfig,
    pub exporter: OtlpConfig,
}

impl Raw {
    /// Takes the settings that stand in `[telemetry]`.
    pub(super) fn add_telemetry(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        #[derive(Deserialize)]
        struct Tables {
            telemetry: BTreeMap<Spanned<String>, toml::Value>,
        }
        let tables: Tables = toml::from_str(text).map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        for (key, value) in tables.telemetry {
            let line = line_of(text, key.span().start);
            let key = key.into_inner();
            let known = SETTINGS.iter().find(|setting| setting.key == key && GROUPS.contains(&setting.group));
            let Some(setting) = known else {
                let near = nearest(&key.replace('-', "_"));
                return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key, near });
            };
            let origin = Origin::File { path: path.to_owned(), line, key: setting.key };
            let texts = toml_texts(&value, setting.is_list).ok_or_else(|| misplaced(&value, origin.clone()))?;
            self.set(setting.key, &texts, origin)?;
        }
        Ok(())
    }

    pub(super) fn metrics(&self) -> Result<MetricsConfig, ConfigError> {
        let mut compat = Compat::default();
        for name in self.metrics_compat.value.iter().flatten() {
            match name.as_str() {
                "llamacpp" => compat.llamacpp = true,
                "vllm" => compat.vllm = true,
                _ => return Err(rule(&self.metrics_compat, format!("{name:?} is neither llamacpp nor vllm"))),
            }
        }
        Ok(MetricsConfig { compat, by_key: on(&self.metrics_per_key) })
    }

    /// `None`: traces go nowhere.
    pub(super) fn otlp(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<OtlpSetup>, ConfigError> {
        if !otlp::IS_BUILT {
            return self.refuse_otlp().map(|()| None);
        }
        let Some(endpoint) = &self.otlp_endpoint.value else {
            if self.otlp_headers.value.is_some() {
                return Err(rule(&self.otlp_headers, "has no meaning without --otlp-endpoint"));
            }
            return Ok(None);
        };
        let endpoint = BaseUrl::new(endpoint).ok_or_else(|| {
            rule(&self.otlp_endpoint, "this is no plain http(s) address such as http://127.0.0.1:4318")
        })?;
        let headers = match &self.otlp_headers.value {
            Some(text) => {
                let refuse = |why: String| rule(&self.otlp_headers, why);
                let text = secret_text("otlp_headers", text, variable).map_err(refuse)?;
                CollectorConfig::headers(&text).map_err(|why| refuse(format!("what it names can't be sent: {why}")))?
            }
            None => Default::default(),
        };
        let ratio = self.otlp_sample.value.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(rule(&self.otlp_sample, format!("{ratio} is not within 0..=1")));
        }
        let collector = CollectorConfig { endpoint, headers, ca: self.otlp_ca.value.clone() };
        Collector::new(&collector).map_err(|error| rule(&self.otlp_ca, error))?;
        let service = self.otlp_service.value.clone().unwrap_or_else(|| "hearth".to_owned());
        Ok(Some(OtlpSetup { collector, exporter: OtlpConfig { ratio: ratio.into(), service } }))
    }

    /// A build that sends no traces takes no setting of them.
    fn refuse_otlp(&self) -> Result<(), ConfigError> {
        fn unset<T>(said: &Said<T>) -> Result<(), ConfigError> {
            match said.origin {
                Origin::Default => Ok(()),
                _ => Err(rule(said, "this hearth was built without the feature \"otlp\"")),
            }
        }
        unset(&self.otlp_endpoint)?;
        unset(&self.otlp_headers)?;
        unset(&self.otlp_sample)?;
        unset(&self.otlp_service)?;
        unset(&self.otlp_ca)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Raw};

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (path, secret) = (dir.path().join("hearth.toml"), dir.path().join("headers"));
        std::fs::write(&secret, "Authorization=Basic%20c2VjcmV0\n").expect("a writable folder");
        let text = text.replace("HEADERS", &secret.display().to_string());
        let model = if text.contains("[[model]]") { "" } else { "model = \"scripted\"\n" };
        std::fs::write(&path, format!("{model}{text}")).expect("a writable folder");
        Raw::gather(Some(&path), |_| None, &[])?.resolve()
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn a_build_without_traces_says_so_of_each_of_their_settings() {
        let endpoint = "\"http://127.0.0.1:4318\"";
        for (key, value) in [
            ("endpoint", endpoint),
            ("headers", "\"file:HEADERS\""),
            ("sample", "0.5"),
            ("service", "\"s\""),
            ("ca", "\"/ca.pem\""),
        ] {
            for table in ["", "[telemetry]\n"] {
                let got = resolve(&format!("{table}otlp_{key} = {value}\n")).expect_err(key).to_string();
                assert!(got.starts_with(&format!("otlp_{key} (")), "{got}");
                assert!(got.contains("built without the feature \"otlp\""), "{got}");
            }
        }
        assert_eq!(resolve("").expect("good settings").otlp, None);
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn the_table_and_the_top_are_the_same() {
        let lines = "otlp_endpoint = \"http://127.0.0.1:4318\"\notlp_headers = \"file:HEADERS\"\notlp_sample = 0.25\n";
        for text in [lines.to_owned(), format!("[telemetry]\nlog_level = \"warn\"\n{lines}")] {
            let config = resolve(&text).expect("good settings");
            let otlp = config.otlp.expect("a collector");
            assert_eq!((otlp.exporter.ratio, otlp.exporter.service.as_str()), (0.25, "hearth"));
            assert_eq!(otlp.collector.headers["authorization"], "Basic c2VjcmV0");
            assert!(!format!("{:?}", otlp.collector).contains("c2Vj"));
        }
        assert_eq!(resolve("").expect("good settings").otlp, None, "nothing is sent unless it is said where to");
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn what_is_wrong_is_named_and_no_secret_shown() {
        let endpoint = "otlp_endpoint = \"http://h:4318\"\n";
        for (text, words) in [
            (
                "[telemetry]\notlp_sampl = 1\n".to_owned(),
                "line 3: unknown key \"otlp_sampl\" (did you mean \"otlp_sample\"?)",
            ),
            ("[telemetry]\nport = 1\n".to_owned(), "line 3: unknown key \"port\""),
            ("[telemetry]\nlog_level = {}\n".to_owned(), "line 3): a table does not belong here"),
            ("telemetry = 1\n".to_owned(), "unknown key \"telemetry\""),
            ("otlp_endpoint = \"h:4318\"\n".to_owned(), "line 2): this is no plain http(s) address"),
            ("otlp_headers = \"file:HEADERS\"\n".to_owned(), "has no meaning without --otlp-endpoint"),
            (format!("{endpoint}otlp_headers = \"Authorization=sk-1\"\n"), "env:NAME or file:PATH"),
            (format!("{endpoint}otlp_headers = \"env:HEARTH_TEST_NOTHING\"\n"), "HEARTH_TEST_NOTHING is not set"),
            (format!("{endpoint}otlp_sample = 1.5\n"), "line 3): 1.5 is not within 0..=1"),
            (
                format!("{endpoint}[[model]]\nfile = \"scripted\"\nname = \"b\"\notlp_sample = 1\n"),
                "said once for the server",
            ),
        ] {
            let got = resolve(&text).expect_err(&text).to_string();
            assert!(got.contains(words), "{text}\n{got}\n{words}");
            assert!(!got.contains("sk-1"), "{got}");
        }
    }
}
