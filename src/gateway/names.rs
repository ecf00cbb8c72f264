//! Which names mean the served model.

/// The model's id, `default` and the aliases; each also with `:latest`, in any case of ASCII letters.
pub(super) struct Names(Vec<String>);

impl Names {
    pub(super) fn new(id: &str, aliases: &[String]) -> Self {
        let names = [id, "default"].into_iter().chain(aliases.iter().map(String::as_str));
        Self(names.map(|name| untagged(name).to_owned()).collect())
    }

    /// An empty name is no name, and means the served model too.
    pub(super) fn serves(&self, name: &str) -> bool {
        name.is_empty() || self.0.iter().any(|served| served.eq_ignore_ascii_case(untagged(name)))
    }
}

/// Ollama's clients put `:latest` behind every name.
fn untagged(name: &str) -> &str {
    const TAG: &str = ":latest";
    match name.len().checked_sub(TAG.len()) {
        Some(at) if name.is_char_boundary(at) && name[at..].eq_ignore_ascii_case(TAG) => &name[..at],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_any_case_and_with_the_tag() {
        let names = Names::new("Qwen3-0.6B", &["small".to_owned(), "x:latest".to_owned()]);
        for name in ["qwen3-0.6b", "Qwen3-0.6B:latest", "default", "DEFAULT:LATEST", "Small", "x", "x:latest", ""] {
            assert!(names.serves(name), "{name}");
        }
        for name in ["qwen3", "small:v2", "latest", ":latest2", "défaut", "é:latest"] {
            assert!(!names.serves(name), "{name}");
        }
    }
}
