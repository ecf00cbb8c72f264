//! Which settings a running server takes anew, and which it was built with.
//!
//! **Invariant:** no change is passed over in silence. A setting that is not in [`LIVE`] needs a restart; whoever adds a
//! kind of table to `hearth.toml` has it taken by `Gateway::reload`, or refused here.

use super::raw::{ConfigError, Origin};
use super::settings::Raw;
use std::path::PathBuf;

/// Settings that a reload changes. Of everything else a change is refused, by name: it needs a restart.
const LIVE: [&str; 55] = [
    "alias",
    "api_key",
    "api_key_file",
    "insecure",
    "allowed_host",
    "cors_origin",
    "strict",
    "any_model",
    "egress",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "max_connections_per_ip",
    "ip_rps",
    "ip_burst",
    "ip_allow",
    "ip_deny",
    "trusted_proxy",
    "auth_fail_limit",
    "auth_fail_ban",
    "header_timeout",
    "body_timeout",
    "idle_timeout",
    "write_stall_timeout",
    "ping_interval",
    "log_level",
    "n_predict",
    "reasoning",
    "price_input",
    "price_cached_input",
    "price_output",
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "typical",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dynatemp_range",
    "dynatemp_exp",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "mirostat",
    "mirostat_lr",
    "mirostat_ent",
    "seed",
    "samplers",
    "ignore_eos",
];

impl Raw {
    /// Refuses `new` if it differs from these settings in one that needs a restart. Errors name it, and where it is
    /// written.
    pub fn refuse_restart(&self, new: &Raw) -> Result<(), ConfigError> {
        if self.tls_cert.value.is_some() != new.tls_cert.value.is_some() {
            let origin = written(&new.tls_cert.origin, &self.tls_cert.origin);
            return Err(needs_restart(origin, "turning TLS on or off"));
        }
        same(self, new)?;
        if self.tables.prefixes != new.tables.prefixes {
            return Err(needs_restart(Origin::Default, "another [[prefix]]"));
        }
        let (old_tables, new_tables) = (&self.tables.models, &new.tables.models);
        if old_tables.len() != new_tables.len() {
            let origin = new_tables.last().or(old_tables.last()).map_or(Origin::Default, |table| table.origin.clone());
            return Err(needs_restart(origin, "another number of models"));
        }
        for (old, new_table) in old_tables.iter().zip(new_tables) {
            same(&self.of_table(old)?, &new.of_table(new_table)?)?;
        }
        Ok(())
    }

    /// The files beside `hearth.toml` whose change changes the settings.
    pub fn files(&self) -> Vec<PathBuf> {
        let said = [&self.api_key_file, &self.tls_cert, &self.tls_key, &self.tls_client_ca];
        let own = said.into_iter().filter_map(|said| said.value.clone());
        own.chain(self.guardrail_files()).chain(self.upstream_files()).collect()
    }
}

/// Compares what is not live.
fn same(old: &Raw, new: &Raw) -> Result<(), ConfigError> {
    for ((setting, before, was), (_, after, is)) in old.shown().into_iter().zip(new.shown()) {
        if before != after && !LIVE.contains(&setting.key) {
            let how = if after.is_some() { "another value" } else { "taking it away" };
            return Err(needs_restart(written(is, was), how));
        }
    }
    Ok(())
}

/// Where a setting is written, or was.
fn written<'a>(now: &'a Origin, before: &'a Origin) -> Origin {
    if *now == Origin::Default { before.clone() } else { now.clone() }
}

fn needs_restart(origin: Origin, what: &str) -> ConfigError {
    ConfigError::Rule { origin, message: format!("{what} needs a restart") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;
    use std::path::Path;

    fn raw(text: &str) -> Raw {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a writable file");
        Raw::gather(Some(file.path()), |_| None, &[]).expect("a good file")
    }

    fn refusal(old: &str, new: &str) -> Option<String> {
        raw(old).refuse_restart(&raw(new)).err().map(|error| error.to_string())
    }

    #[test]
    fn every_live_setting_is_a_setting_and_is_there_once() {
        for (i, key) in LIVE.iter().enumerate() {
            assert!(SETTINGS.iter().any(|setting| setting.key == *key), "{key}");
            assert!(!LIVE[..i].contains(key), "{key} twice");
        }
        let sampling = SETTINGS.iter().filter(|setting| setting.group.starts_with("Sampling"));
        assert!(sampling.into_iter().all(|setting| LIVE.contains(&setting.key)));
    }

    #[test]
    fn what_is_live_passes_and_the_rest_is_named() {
        let old = "model = \"scripted\"\nport = 1\napi_key = \"a\"\n";
        for new in [
            "model = \"scripted\"\nport = 1\napi_key = [\"b\", \"c\"]\ntemp = 0.5\nstrict = true\nip_deny = \"10.0.0.0/8\"\n",
            "model = \"scripted\"\nport = 1\n",
        ] {
            assert_eq!(refusal(old, new), None, "{new}");
        }
        let text = refusal(old, "model = \"scripted\"\nport = 2\n").expect("refused");
        assert!(text.starts_with("port (") && text.ends_with("line 2): another value needs a restart"), "{text}");
        let text = refusal(old, "model = \"scripted\"\n").expect("refused");
        assert!(text.starts_with("port (") && text.ends_with("needs a restart"), "{text}");
        let text = refusal(old, "model = \"other\"\nport = 1\n").expect("refused");
        assert!(text.starts_with("model (") && text.contains("line 1"), "{text}");
        let text = refusal(old, &format!("{old}tls_cert = \"c\"\ntls_key = \"k\"\n")).expect("refused");
        assert!(text.starts_with("tls_cert (") && text.ends_with("turning TLS on or off needs a restart"), "{text}");
    }

    #[test]
    fn models_of_tables_are_compared_one_by_one() {
        let old =
            "[[model]]\nname = \"a\"\nfile = \"scripted\"\n[[model]]\nname = \"b\"\nfile = \"scripted:load_ms=1\"\n";
        assert_eq!(refusal(old, &old.replace("\"b\"", "\"c\"\ntemp = 0")), None);
        assert_eq!(refusal(old, &format!("{old}[[alias]]\nname = \"x\"\nmodel = \"b\"\n")), None);
        let text = refusal(old, &old.replace("load_ms=1", "load_ms=2")).expect("refused");
        assert!(text.starts_with("file (") && text.contains("line 6"), "{text}");
        let text = refusal(old, &old.replace("name = \"b\"", "name = \"b\"\nparallel = 2")).expect("refused");
        assert!(text.starts_with("parallel (") && text.contains("line 6"), "{text}");
        let one = "[[model]]\nname = \"a\"\nfile = \"scripted\"\n";
        assert!(refusal(old, one).is_some_and(|text| text.ends_with("another number of models needs a restart")));
    }

    #[test]
    fn tables_of_keys_teams_upstreams_limits_and_rules_are_live() {
        let old = "model = \"scripted\"\n";
        for table in [
            "[[key]]\nname = \"ci\"\nsha256 = \"ab\"\n",
            "[[team]]\nid = \"t\"\n",
            "egress = \"allowed\"\n[[upstream]]\nname = \"u\"\nbase_url = \"http://h/v1\"\nmodel = \"m\"\n",
            "[limits.a]\nrpm = 1\n",
            "[guardrails.a]\nsystem = \"s\"\n",
        ] {
            assert_eq!(refusal(old, &format!("{old}{table}")), None, "{table}");
            assert_eq!(refusal(&format!("{old}{table}"), old), None, "{table}");
        }
    }

    #[test]
    fn files_that_matter_are_known() {
        let files = raw("api_key_file = \"keys\"\ntls_cert = \"c\"\ntls_key = \"k\"\n").files();
        assert_eq!(files, ["keys", "c", "k"].map(Path::new));
    }
}
