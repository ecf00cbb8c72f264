//! Texts to send: words in an order that no other request has, so that caches help only where a scenario means them to.

/// Common words, so that most vocabularies have each as one token.
const WORDS: [&str; 16] = [
    "time", "river", "house", "garden", "letter", "island", "window", "morning", "people", "answer", "story", "summer",
    "machine", "paper", "forest", "music",
];

/// A number of which every bit depends on every bit of `n`: what is added to such seeds of two rounds never meets.
pub(super) fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// `n` words by `seed` (splitmix64: near seeds give unlike texts from the first word on).
pub(super) fn words(n: usize, seed: u64) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        WORDS[(mixed(state) % WORDS.len() as u64) as usize]
    };
    let words: Vec<&str> = (0..n).map(|_| next()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_seeds_give_unlike_texts() {
        let heads: std::collections::HashSet<String> = (0..64).map(|seed| words(8, seed)).collect();
        assert_eq!(heads.len(), 64);
        assert_eq!(words(40, 7).split(' ').count(), 40);
        assert_eq!(words(40, 7), words(40, 7));
    }
}
