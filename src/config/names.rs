//! The models of a server with their names, each name meaning one of them.

use super::raw::ConfigError;
use super::resolve::rule;
use super::settings::Raw;
use super::tables::ModelTable;
use super::value::{LoadWhen, Reasoning};
use super::{Origin, ServedModel};
use crate::engine::config::ModelSource;
use crate::gateway::{KeepAlive, ModelConfig, NAMES_MAX, Size, is_wild};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

/// Ollama's default.
const LAZY_KEEP_ALIVE: Duration = Duration::from_secs(300);

/// A model with where its name is written.
type Named = (ServedModel, Origin);

impl Raw {
    /// The top-level model, if there is one, and those of the tables. Never empty.
    pub(super) fn models(&self) -> Result<Vec<ServedModel>, ConfigError> {
        let mut models: Vec<Named> = Vec::new();
        if self.model.value.is_some() || self.tables.models.is_empty() {
            models.push((self.served(None)?, self.alias.origin.clone()));
        } else {
            self.refuse_orphans()?;
        }
        for table in &self.tables.models {
            self.know_guardrails(&table.guardrails, &table.origin)?;
            models.push((self.of_table(table)?.served(Some(table))?, table.origin.clone()));
        }
        self.add_aliases(&mut models)?;
        check_names(&models)?;
        Ok(models.into_iter().map(|(model, _)| model).collect())
    }

    /// What is said of the top-level model has no meaning where there is none.
    fn refuse_orphans(&self) -> Result<(), ConfigError> {
        let of_the_model = self.shown().into_iter().filter(|(setting, ..)| setting.group == "Model");
        match of_the_model.into_iter().find(|(.., origin)| **origin != Origin::Default) {
            None => Ok(()),
            Some((_, _, origin)) => {
                let message = "no top-level model is named; this belongs into its [[model]]".to_owned();
                Err(ConfigError::Rule { origin: origin.clone(), message })
            }
        }
    }

    fn served(&self, table: Option<&ModelTable>) -> Result<ServedModel, ConfigError> {
        let engine = self.engine()?;
        let (id, aliases) = self.names(&engine.source, table)?;
        let is_lazy = self.load.value == Some(LoadWhen::Lazy);
        let by_load = if is_lazy { KeepAlive::For(LAZY_KEEP_ALIVE) } else { KeepAlive::Forever };
        let config = ModelConfig {
            id,
            aliases,
            sampling: self.sampling()?,
            n_predict: self.n_predict()?,
            thinks: self.reasoning.value.and_then(Reasoning::thinks),
            file_name: file_name(&engine.source),
            n_created: n_created(&engine.source),
            is_lazy,
            keep_alive: self.keep_alive.value.unwrap_or(by_load),
            price: self.price(),
            guardrails: table.map(|table| table.guardrails.clone()).unwrap_or_default(),
            size: Size::default(),
            outline: None,
        };
        let (ctx_from_model, says_ubatch) =
            (self.ctx_size.value == Some(0), self.ubatch_size.origin != Origin::Default);
        let says_cache =
            [&self.cache_type_k, &self.cache_type_v].iter().any(|said| said.value.is_some_and(|said| said.0.is_some()));
        Ok(ServedModel { config, engine, ctx_from_model, says_ubatch, says_cache })
    }

    /// The model's name and its other names. Without a table the first alias is the name, unless it is a pattern.
    fn names(&self, source: &ModelSource, table: Option<&ModelTable>) -> Result<(String, Vec<String>), ConfigError> {
        let mut names = self.alias.value.clone().unwrap_or_default();
        for name in &names {
            if let Some(message) = fault(name) {
                return Err(rule(&self.alias, message));
            }
        }
        let own = match table {
            Some(table) => table.name.clone(),
            None => names.first().is_some_and(|name| !is_wild(name)).then(|| names.remove(0)),
        };
        if let (Some(name), Some(table)) = (&own, table)
            && let Some(message) = fault(name).or_else(|| is_wild(name).then(|| format!("{name:?} is a pattern")))
        {
            return Err(ConfigError::Rule { origin: table.origin.clone(), message });
        }
        let id = own.unwrap_or_else(|| match source {
            ModelSource::Gguf(path) => path
                .file_stem()
                .map_or_else(|| "model".into(), |stem| stem.to_string_lossy().replace(char::is_whitespace, "-")),
            ModelSource::Scripted(_) => "scripted".into(),
        });
        Ok((id, names))
    }

    /// Gives the names of `[[alias]]` to their models.
    fn add_aliases(&self, models: &mut [Named]) -> Result<(), ConfigError> {
        for alias in &self.tables.aliases {
            let refuse = |message: String| Err(ConfigError::Rule { origin: alias.origin.clone(), message });
            if let Some(message) = fault(&alias.name) {
                return refuse(message);
            }
            match models.iter_mut().find(|(model, _)| model.config.id.eq_ignore_ascii_case(&alias.model)) {
                Some((model, _)) => model.config.aliases.push(alias.name.clone()),
                // An upstream's, or a route's; whether it is there is looked at with the routes.
                None if self.tables.upstreams.iter().any(|it| it.name.eq_ignore_ascii_case(&alias.model)) => {}
                None => return refuse(format!("there is no model or upstream named {:?}", alias.model)),
            }
        }
        Ok(())
    }
}

/// What is wrong with a name.
fn fault(name: &str) -> Option<String> {
    let is_bad = name.is_empty() || name.len() > 256 || name.chars().any(|c| c.is_control() || c.is_whitespace());
    is_bad.then(|| format!("{name:?} has spaces or more than 256 bytes"))
}

/// A name that means two models means neither.
fn check_names(models: &[Named]) -> Result<(), ConfigError> {
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for (idx, (model, origin)) in models.iter().enumerate() {
        for name in std::iter::once(&model.config.id).chain(&model.config.aliases) {
            let refuse = |message: String| Err(ConfigError::Rule { origin: origin.clone(), message });
            if let Some(owner) = owners.insert(name.to_ascii_lowercase(), idx)
                && owner != idx
            {
                return refuse(format!("the name {name:?} is given to two models"));
            }
            if owners.len() > NAMES_MAX {
                return refuse(format!("more than {NAMES_MAX} names"));
            }
        }
    }
    Ok(())
}

fn file_name(source: &ModelSource) -> String {
    let ModelSource::Gguf(path) = source else { return String::new() };
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// When the model was made, as far as its file tells: seconds since 1970.
fn n_created(source: &ModelSource) -> u64 {
    let ModelSource::Gguf(path) = source else { return 0 };
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}
