//! Which LoRA adapters a request is computed with.

use super::config::EngineConfig;
use super::error::Failure;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Adapters with their scales, by rising index and without those of scale 0. `asked`: the request's, all others then
/// having scale 0; `None`: the defaults.
pub fn chosen(defaults: &[f32], asked: Option<&[(u32, f32)]>) -> Result<Vec<(u32, f32)>, Failure> {
    let mut scales = match asked {
        None => defaults.to_vec(),
        Some(_) => vec![0.0; defaults.len()],
    };
    let mut seen = vec![false; defaults.len()];
    for (i, (id, scale)) in asked.unwrap_or_default().iter().enumerate() {
        let refuse =
            |part: &str, message: String| Err(Failure::invalid(&format!("lora[{i}].{part}"), "invalid_value", message));
        let index = *id as usize;
        match seen.get_mut(index) {
            None if defaults.is_empty() => return refuse("id", "this model has no LoRA adapters".into()),
            None => return refuse("id", format!("there is no LoRA adapter {id} (0 to {})", defaults.len() - 1)),
            Some(true) => return refuse("id", format!("the LoRA adapter {id} is given twice")),
            Some(seen) => *seen = true,
        }
        if !(-EngineConfig::LORA_SCALE_MAX..=EngineConfig::LORA_SCALE_MAX).contains(scale) {
            let most = EngineConfig::LORA_SCALE_MAX;
            return refuse("scale", format!("a scale must be within -{most} and {most}"));
        }
        scales[index] = *scale;
    }
    let used = (0u32..).zip(scales).filter(|(_, scale)| *scale != 0.0);
    Ok(used.collect())
}

/// KV cells hold what the adapters made of the tokens, so a prefix is shared only among requests with the same ones.
pub(super) fn partition(tenant: u64, adapters: &[(u32, f32)]) -> u64 {
    if adapters.is_empty() {
        return tenant;
    }
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    for (index, scale) in adapters {
        (index, scale.to_bits()).hash(&mut hasher);
    }
    // Never 0, which is the partition of those without keys and adapters.
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_all_scales_or_none() {
        let defaults = [1.0, 0.0, 0.5];
        assert_eq!(chosen(&defaults, None), Ok(vec![(0, 1.0), (2, 0.5)]));
        assert_eq!(chosen(&defaults, Some(&[])), Ok(vec![]));
        assert_eq!(chosen(&defaults, Some(&[(2, 0.25), (1, -1.0)])), Ok(vec![(1, -1.0), (2, 0.25)]));
        assert_eq!(chosen(&defaults, Some(&[(0, 0.0)])), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |defaults: &[f32], asked: &[(u32, f32)]| match chosen(defaults, Some(asked)) {
            Err(Failure::Invalid { field, .. }) => field,
            other => format!("{other:?}"),
        };
        assert_eq!(field(&[1.0], &[(0, 1.0), (1, 1.0)]), "lora[1].id");
        assert_eq!(field(&[], &[(0, 1.0)]), "lora[0].id");
        assert_eq!(field(&[1.0], &[(0, 1.0), (0, 2.0)]), "lora[1].id");
        assert_eq!(field(&[1.0], &[(0, f32::NAN)]), "lora[0].scale");
        assert_eq!(field(&[1.0], &[(u32::MAX, 1.0)]), "lora[0].id");
    }

    #[test]
    fn prefixes_are_shared_only_under_the_same_adapters() {
        assert_eq!(partition(7, &[]), 7);
        let with = partition(7, &[(0, 1.0)]);
        assert_eq!(with, partition(7, &[(0, 1.0)]));
        let others = [partition(8, &[(0, 1.0)]), partition(7, &[(0, 0.5)]), partition(7, &[(1, 1.0)]), 7, 0];
        assert!(others.iter().all(|other| *other != with));
    }
}
