//! What is accepted, what is refused, and in which words.

use super::*;
use crate::http::HttpConfig;

/// Settings as flags over a scripted model.
fn resolve(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    let mut all = vec![("model", vec!["scripted".to_owned()], Origin::Argument)];
    all.extend(flags.iter().map(|(key, text)| (*key, vec![(*text).to_owned()], Origin::Flag(key.replace('_', "-")))));
    let no_file = tempfile::NamedTempFile::new().expect("a temporary file");
    Raw::gather(Some(no_file.path()), |_| None, &all)?.resolve()
}

fn refusal(flags: &[(&'static str, &str)]) -> String {
    resolve(flags).expect_err("to be refused").to_string()
}

#[test]
fn nothing_said_is_what_each_room_says_by_default() {
    let config = resolve(&[]).expect("defaults");
    let engine = EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()));
    assert_eq!(config.models[0].engine, engine);
    assert_eq!(format!("{:?}", config.http), format!("{:?}", HttpConfig::default()));
    assert_eq!(config.log, LogConfig::default());
    assert_eq!(config.gateway.sampling, Sampling::default());
    assert!(!config.in_process && config.warnings.is_empty());
    let readme = include_str!("../../README.md");
    let row = format!("\n| `--max-gap-ms` | {} |", engine.max_gap.as_millis());
    assert!(readme.contains(&row), "the README tells another default of --max-gap-ms");
}

#[test]
fn an_open_door_needs_a_key() {
    let text = refusal(&[("host", "0.0.0.0")]);
    assert!(text.starts_with("--host: 0.0.0.0 can be reached by others"), "{text}");
    assert!(resolve(&[("host", "0.0.0.0"), ("api_key", "k")]).is_ok_and(|config| config.warnings.is_empty()));
    assert!(resolve(&[("host", "0.0.0.0"), ("insecure", "true")]).is_ok_and(|config| config.warnings.len() == 1));
    assert!(resolve(&[("host", "[::1]")]).is_ok());
    assert!(refusal(&[("host", "example.org")]).contains("no IP address"));
    // One address that others can reach is enough.
    let text = refusal(&[("host", "127.0.0.1,192.0.2.1")]);
    assert!(text.starts_with("--host: 192.0.2.1 can be reached by others"), "{text}");
    let hosts = resolve(&[("host", "localhost,::1")]).expect("two addresses").http.hosts;
    assert_eq!(hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1", "::1"]);
    assert_eq!(refusal(&[("host", "127.0.0.1,localhost")]), "--host: 127.0.0.1 is given twice");
}

#[test]
fn numbers_out_of_range_are_named() {
    assert_eq!(refusal(&[("parallel", "0")]), "--parallel: 0 is not within 1..=256");
    assert_eq!(refusal(&[("workers", "65")]), "--workers: 65 is not within 1..=64");
    assert!(refusal(&[("temp", "-1")]).starts_with("--temp: "));
    assert!(refusal(&[("mirostat_lr", "nan")]).starts_with("--mirostat-lr: "));
    assert!(refusal(&[("ctx_size", "4294967295")]).starts_with("--ctx-size: more than"));
    assert_eq!(refusal(&[("cache_type_k", "q9_9")]).split(':').next(), Some("--cache-type-k"));
    assert!(refusal(&[("body_limit", "10")]).starts_with("--body-limit: 10 bytes"));
}

#[test]
fn keys_come_from_a_file_line_by_line() {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(b"# staff\nsk-a\n\n  sk-b  \n").expect("a writable file");
    let path = file.path().to_str().expect("a plain path").to_owned();
    let config = resolve(&[("api_key_file", &path)]).expect("two keys");
    assert!(!format!("{config:?}").contains("sk-a"), "keys must not be printed");
    std::fs::write(file.path(), "# nothing\n").expect("a writable file");
    assert!(refusal(&[("api_key_file", &path)]).contains("holds no key"));
    std::fs::write(file.path(), "two words\n").expect("a writable file");
    assert!(!refusal(&[("api_key_file", &path)]).contains("two words"));
    assert!(refusal(&[("api_key_file", "/nowhere/keys")]).starts_with("--api-key-file: /nowhere/keys"));
}

#[test]
fn a_model_that_is_no_file_is_refused_in_words() {
    let message = |model: &str| {
        let flags = [("model", vec![model.to_owned()], Origin::Argument)];
        let no_file = tempfile::NamedTempFile::new().expect("a temporary file");
        let raw = Raw::gather(Some(no_file.path()), |_| None, &flags).expect("a model is a text");
        raw.resolve().expect_err("no model").to_string()
    };
    assert!(message("/nowhere/m.gguf").contains("there is no such file"));
    assert!(message("/").contains("this is a directory"));
    assert!(message("scripted:step=1").contains("there is no \"step\""));
    assert!(message("scripted:step_us=x").contains("\"x\" is not a whole number"));
    let nothing = tempfile::NamedTempFile::new().expect("a temporary file");
    let raw = Raw::gather(Some(nothing.path()), |_| None, &[]).expect("nothing said");
    assert!(matches!(raw.resolve(), Err(ConfigError::NoModel)));
}

#[test]
fn the_first_alias_is_the_name() {
    let config = resolve(&[("alias", "a,b,c")]).expect("three names");
    assert_eq!((config.gateway.model_id.as_str(), config.gateway.aliases), ("a", vec!["b".to_owned(), "c".to_owned()]));
    assert_eq!(resolve(&[]).map(|config| config.gateway.model_id).ok().as_deref(), Some("scripted"));
}

#[test]
fn zero_means_choose() {
    let config = resolve(&[("ctx_size", "0"), ("threads", "0")]).expect("choices");
    let model = &config.models[0];
    assert_eq!((model.engine.n_ctx, model.engine.n_threads, model.ctx_from_model), (None, None, true));
    assert!(!model.says_ubatch, "a GPU may take more");
}

#[test]
fn answers_outlive_a_restart_only_where_they_can_be_sealed() {
    assert!(refusal(&[("cache_persist", "true")]).contains("without --cache"));
    let text = refusal(&[("cache_persist", "true"), ("cache", "true")]);
    assert!(text.starts_with("--cache-persist: ") && text.contains("--data-dir"), "{text}");
    let all = [("cache_persist", "true"), ("cache", "true"), ("data_dir", "books")];
    assert!(resolve(&all).expect("all that it needs").gateway.routing.cache.persist);
    assert!(!resolve(&[("cache", "true")]).expect("a cache").gateway.routing.cache.persist);
}
