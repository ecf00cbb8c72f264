//! Configuration files, fuzzed (F12).

use super::raw::Origin;
use super::{Raw, SETTINGS};
use crate::fuzz::{Shape, Target, fuzz, outcome};

/// A file is refused in bounded words, or it is a configuration that can be shown.
#[test]
fn config() {
    let mut words: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    words.extend([
        "true", "false", "[[", "]]", "[limits]", "\"", "'''", "\"\"\"", "0", "-1", "1e9", "5s", "16GiB", "{", "}", "=",
    ]);
    let target = Target { name: "config", seeds: Vec::new(), shape: Shape::Text, words: &words };
    let model = [("model", vec!["scripted".to_owned()], Origin::Argument)];
    let has_models = |input: &[u8]| String::from_utf8_lossy(input).contains("[[model]]");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fuzz(&target, |input| {
        std::fs::write(file.path(), input).expect("it can be written");
        let settled = Raw::gather(Some(file.path()), |_| None, if has_models(input) { &[] } else { &model })
            .and_then(|raw| raw.resolve());
        match settled {
            Ok(config) => {
                assert!(!format!("{config:?}").is_empty());
                1 + config.models.len() as u64 + config.warnings.len() as u64 * 8
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() < 8192, "{message:.200}");
                outcome(&message.replace(&*file.path().to_string_lossy(), ""))
            }
        }
    });
}
