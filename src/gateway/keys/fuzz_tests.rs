//! What clients present as a key, fuzzed (F4).

use super::{ApiKey, Credential, authenticate};
use crate::fuzz::{Shape, Target, fuzz};

/// A text is a key of the ring in one way only, a static key is known by its whole text, and nothing else opens.
#[test]
fn keys() {
    let seeds = (0..4).map(|_| Credential::generate().expect("randomness").reveal().into_bytes());
    let seeds = seeds.chain([b"sk-static".to_vec(), b"sk-hearth-".to_vec()]).collect();
    let words = ["sk-hearth-", "-", "sk-static", "Bearer ", "\0", "é"];
    let target = Target { name: "keys", seeds, shape: Shape::Text, words: &words };
    let statics = [ApiKey::new("sk-static").expect("a key")];
    fuzz(&target, |input| {
        let text = String::from_utf8_lossy(input);
        let credential = Credential::parse(&text);
        if let Some(credential) = &credential {
            assert_eq!(credential.reveal(), text);
        }
        let opens = authenticate(&statics, Some(&text)).is_ok();
        assert_eq!(opens, text == "sk-static");
        u64::from(opens) << 1 | u64::from(credential.is_some())
    });
}
