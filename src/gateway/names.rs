//! Which names mean which model.

/// Most names of one server, of all its models together.
pub const NAMES_MAX: usize = 1024;

/// The models' ids, `default` and the aliases; each also with `:latest`, in any case of ASCII letters. In an alias `*`
/// stands for any run of characters.
pub(super) struct Names {
    /// Names without `*`, in the order they were given.
    exact: Vec<(String, usize)>,
    /// Names with `*`; those that say most come first.
    wild: Vec<(String, usize)>,
}

impl Names {
    /// `models`: (id, aliases) of each, by index; the first is the one meant by `default` and by no name.
    pub(super) fn new<'a>(models: impl Iterator<Item = (&'a str, &'a [String])> + Clone) -> Self {
        let ids = models.clone().enumerate().map(|(idx, (id, _))| (id, idx));
        let aliases = models.enumerate().flat_map(|(idx, (_, aliases))| aliases.iter().map(move |a| (a.as_str(), idx)));
        let (mut exact, mut wild) = (Vec::new(), Vec::new());
        for (name, idx) in ids.chain(aliases).chain([("default", 0)]) {
            let kept = if is_wild(name) { &mut wild } else { &mut exact };
            kept.push((untagged(name).to_ascii_lowercase(), idx));
        }
        // Stable: of two that say as much, the one written first wins.
        wild.sort_by_key(|(pattern, _): &(String, usize)| {
            std::cmp::Reverse(pattern.bytes().filter(|byte| *byte != b'*').count())
        });
        Self { exact, wild }
    }

    /// Whether `name` is a model's own name, and how much the best pattern for it says otherwise.
    pub(super) fn weight(&self, name: &str) -> (bool, usize) {
        let name = untagged(name).to_ascii_lowercase();
        let is_exact = name.is_empty() || self.exact.iter().any(|(known, _)| *known == name);
        let pattern = self.wild.iter().find(|(pattern, _)| matches(pattern, &name));
        (is_exact, pattern.map_or(0, |(pattern, _)| pattern.bytes().filter(|byte| *byte != b'*').count()))
    }

    /// The model that `name` means. An empty name is no name, and means the first.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        if name.is_empty() {
            return Some(0);
        }
        let name = untagged(name).to_ascii_lowercase();
        let exact = self.exact.iter().find(|(known, _)| *known == name);
        exact.or_else(|| self.wild.iter().find(|(pattern, _)| matches(pattern, &name))).map(|(_, idx)| *idx)
    }
}

/// Whether a name is a pattern.
pub fn is_wild(name: &str) -> bool {
    name.contains('*')
}

/// Whether `name` fits `pattern`, in any case, with or without `:latest`.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    matches(&pattern.to_ascii_lowercase(), &untagged(name).to_ascii_lowercase())
}

/// `*` matches any run of characters, also none. Time: the product of the lengths at worst; both are bounded.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
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

    fn names(models: &[(&str, &[&str])]) -> Names {
        let owned: Vec<(&str, Vec<String>)> =
            models.iter().map(|(id, aliases)| (*id, aliases.iter().map(|a| (*a).to_owned()).collect())).collect();
        Names::new(owned.iter().map(|(id, aliases)| (*id, aliases.as_slice())))
    }

    #[test]
    fn names_match_in_any_case_and_with_the_tag() {
        let names = names(&[("Qwen3-0.6B", &["small", "x:latest"])]);
        for name in ["qwen3-0.6b", "Qwen3-0.6B:latest", "default", "DEFAULT:LATEST", "Small", "x", "x:latest", ""] {
            assert_eq!(names.find(name), Some(0), "{name}");
        }
        for name in ["qwen3", "small:v2", "latest", ":latest2", "défaut", "é:latest", "*"] {
            assert_eq!(names.find(name), None, "{name}");
        }
    }

    #[test]
    fn exact_names_win_over_wildcards_and_long_ones_over_short() {
        let names = names(&[("a", &["gpt-*", "*"]), ("b", &["gpt-4*", "GPT-4o"]), ("c", &["gpt-4*-mini", "gpt-3"])]);
        for (name, idx) in [
            ("gpt-5", 0),
            ("gpt-4", 1),
            ("GPT-4-turbo:latest", 1),
            ("gpt-4o", 1),
            ("gpt-4o-mini", 2),
            ("gpt-3", 2),
            ("gpt-", 0),
            ("whatever", 0),
            ("C", 2),
        ] {
            assert_eq!(names.find(name), Some(idx), "{name}");
        }
    }

    #[test]
    fn a_name_weighs_what_its_best_pattern_says_otherwise() {
        let names = names(&[("a", &["*", "gpt-*"]), ("b", &["g*-4*", "exact"])]);
        for (name, weight) in [
            ("", (true, 0)),
            ("A", (true, 0)),
            ("exact:latest", (true, 0)),
            ("default", (true, 0)),
            ("gpt-3", (false, 4)),
            ("gpt-4", (false, 4)),
            ("go-4", (false, 3)),
            ("x", (false, 0)),
        ] {
            assert_eq!(names.weight(name), weight, "{name}");
        }
        let none = Names::new(std::iter::empty::<(&str, &[String])>());
        assert_eq!((none.weight("x"), none.weight("default")), ((false, 0), (true, 0)));
    }

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, name, is) in [
            ("a*", "a", true),
            ("a*", "ba", false),
            ("*b", "ab", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("a*bb*b", "abb", false),
            ("a*bb*b", "abbb", true),
            ("**", "", true),
            ("é*", "éa", true),
        ] {
            assert_eq!(fits(pattern, name), is, "{pattern} {name}");
        }
    }
}
