//! The settings in use, for administrators to look at: everything but secrets.

use super::Raw;
use super::guardrails::guardrail_lines;
use super::limits::limit_lines;
use super::tables::GrantTable;
use crate::gateway::usd;
use serde_json::{Map, Value, json};

/// What stands in a secret's place.
const MASK: &str = "***";

impl Raw {
    /// As JSON: each setting with its value and where that is from, then the tables. Keys are masked; where an upstream's key
    /// is to be found (`env:NAME`, `file:PATH`) is no secret.
    pub fn masked(&self) -> Value {
        let setting = |(setting, value, origin): (&super::Setting, Option<toml::Value>, &super::Origin)| {
            let value = match value {
                Some(_) if setting.is_secret => json!(MASK),
                value => json_of(value),
            };
            (setting.key.to_owned(), json!({ "value": value, "from": origin.to_string() }))
        };
        let settings: Map<String, Value> = self.shown().into_iter().map(setting).collect();
        let tables = &self.tables;
        let sets = |lines: Vec<(&'static str, toml::Value)>| {
            lines.into_iter().map(|(key, value)| (key.to_owned(), json_of(Some(value)))).collect::<Map<_, _>>()
        };
        let limits: Map<String, Value> =
            tables.limits.iter().map(|(name, set)| (name.clone(), Value::Object(sets(limit_lines(set))))).collect();
        let guardrails: Map<String, Value> = tables
            .guardrails
            .iter()
            .map(|table| (table.name.clone(), Value::Object(sets(guardrail_lines(table)))))
            .collect();
        json!({
            "settings": settings,
            "models": self.masked_models(),
            "aliases": self.masked_aliases(),
            "upstreams": self.masked_upstreams(),
            "limits": limits,
            "guardrails": guardrails,
            "teams": tables.teams.iter().map(granted).collect::<Vec<_>>(),
            "keys": tables.keys.iter().map(granted).collect::<Vec<_>>(),
        })
    }

    fn masked_models(&self) -> Vec<Value> {
        let model = |table: &super::tables::ModelTable| {
            let said = |(setting, texts, _): &(&'static super::Setting, Vec<String>, super::Origin)| {
                let value = if setting.is_secret { json!(MASK) } else { json!(texts) };
                (setting.key.to_owned(), value)
            };
            let settings: Map<String, Value> = table.settings.iter().map(said).collect();
            json!({
                "name": table.name,
                "file": table.file,
                "egress": if table.never_leaves { "never" } else { "allowed" },
                "guardrails": table.guardrails,
                "settings": settings,
            })
        };
        self.tables.models.iter().map(model).collect()
    }

    fn masked_aliases(&self) -> Vec<Value> {
        let alias = |table: &super::tables::AliasTable| {
            let routing = &table.routing;
            json!({
                "name": table.name,
                "target": table.model,
                "fallbacks": routing.fallbacks,
                "n_rules": routing.rules.len(),
                "egress": if routing.never_leaves { "never" } else { "allowed" },
                "min_logprob": routing.min_logprob,
                "report_model_as": if routing.reports_alias { "alias" } else { "target" },
                "guardrails": routing.guardrails,
            })
        };
        self.tables.aliases.iter().map(alias).collect()
    }

    fn masked_upstreams(&self) -> Vec<Value> {
        let upstream = |table: &super::upstreams::UpstreamTable| {
            // What is no reference was refused when it was read.
            let is_reference = |key: &&String| key.starts_with("env:") || key.starts_with("file:");
            let price = &table.price;
            json!({
                "name": table.name,
                "base_url": table.base_url,
                "model": table.model,
                "kind": table.kind.as_deref().unwrap_or("openai"),
                "api_key": table.api_key.as_ref().map(|key| Some(key).filter(is_reference).map_or(MASK, |key| key)),
                "max_concurrency": table.max_concurrency,
                "price": {
                    "input": usd(price.input),
                    "cached_input": usd(price.cached_input),
                    "output": usd(price.output),
                },
                "guardrails": table.guardrails,
            })
        };
        self.tables.upstreams.iter().map(upstream).collect()
    }
}

/// A digest proves nothing by itself, but nobody has to have it.
fn granted(table: &GrantTable) -> Value {
    let mut fields = table.fields.clone();
    if let Some(digest) = fields.get_mut("sha256") {
        *digest = json!(MASK);
    }
    Value::Object(fields)
}

fn json_of(value: Option<toml::Value>) -> Value {
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_but_what_opens_something() {
        let text = r#"
            api_key = "sk-static"
            [[model]]
            name = "m"
            file = "scripted"
            temp = 0.5
            [[upstream]]
            name = "u"
            base_url = "http://h/v1"
            model = "x"
            api_key = "env:SECRET_NAME"
            price = { input = 0.15 }
            [[alias]]
            name = "a"
            target = "u"
            [[key]]
            name = "ci"
            sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
            models = ["m"]
            [limits.pro]
            rpm = 60
            [guardrails.g]
            input = { deny_words = ["w"] }
        "#;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a writable file");
        let raw = Raw::gather(Some(file.path()), |_| None, &[]).expect("a good file");
        let shown = raw.masked();
        let text = shown.to_string();
        assert!(!text.contains("sk-static") && !text.contains("9f86d0"), "{text}");
        assert_eq!(shown["settings"]["api_key"]["value"], "***");
        assert_eq!(shown["settings"]["port"]["value"], 8080);
        assert_eq!(
            (&shown["models"][0]["name"], &shown["models"][0]["settings"]["temp"][0]),
            (&json!("m"), &json!("0.5"))
        );
        assert_eq!(
            (&shown["upstreams"][0]["api_key"], &shown["upstreams"][0]["price"]["input"]),
            (&json!("env:SECRET_NAME"), &json!("0.15"))
        );
        assert_eq!((&shown["aliases"][0]["target"], &shown["limits"]["pro"]["rpm"]), (&json!("u"), &json!(60)));
        assert_eq!((&shown["keys"][0]["name"], &shown["keys"][0]["sha256"]), (&json!("ci"), &json!("***")));
        assert_eq!(shown["guardrails"]["g"]["input"]["deny_words"], json!(["w"]));
    }
}
