//! What a key looks like, and what is kept of it.
//!
//! `sk-hearth-<12 id>-<43 secret><6 check>`, all base62. The prefix is for secret scanners; the id is public and names the
//! key in logs, lists and rows; the secret has 256 bits; the check, a CRC-32 of what stands before it, tells a typing
//! mistake from a wrong key without a look-up.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

const PREFIX: &str = "sk-hearth-";
pub(super) const ID_LEN: usize = 12;
const SECRET_LEN: usize = 43;
const CHECK_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A whole key, to be shown once. Not `Debug`, so that nothing prints it by mistake.
pub struct Credential {
    id: String,
    secret: String,
}

/// HMAC-SHA256 of a key's secret: all that is kept at rest, useless without the pepper.
#[derive(Clone, Copy)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// 32 random bytes of this installation, in a file of their own.
#[derive(Clone)]
pub struct Pepper([u8; 32]);

impl Pepper {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn hash(&self, secret: &str) -> KeyHash {
        KeyHash(hmac(&self.0, &[secret.as_bytes()]))
    }

    /// A key for another purpose, which tells nothing about this one.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        hmac(&self.0, &[b"hearth derive\0", purpose.as_bytes()])
    }
}

/// HMAC-SHA256 of `parts`, one after the other.
pub fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key shorter than the hash's block is filled up with zeros, by HMAC's definition.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

impl KeyHash {
    pub(super) fn is(&self, other: &KeyHash) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl Credential {
    /// A fresh key. Errors: the system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self { id: random_base62(ID_LEN)?, secret: random_base62(SECRET_LEN)? })
    }

    /// A fresh secret for the same id.
    pub fn regenerate(id: &str) -> Result<Self, getrandom::Error> {
        Ok(Self { id: id.to_owned(), secret: random_base62(SECRET_LEN)? })
    }

    /// `None`: not of this form, or mistyped.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let is_base62 = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (id, tail) = rest.split_once('-')?;
        if id.len() != ID_LEN || tail.len() != SECRET_LEN + CHECK_LEN || !is_base62(id) || !is_base62(tail) {
            return None;
        }
        let credential = Self { id: id.to_owned(), secret: tail[..SECRET_LEN].to_owned() };
        (credential.check() == tail[SECRET_LEN..]).then_some(credential)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The text that a client sends.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}-{}{}", self.id, self.secret, self.check())
    }

    fn check(&self) -> String {
        let mut n = crc32fast::hash(format!("{PREFIX}{}-{}", self.id, self.secret).as_bytes());
        let mut digits = [b'0'; CHECK_LEN];
        for digit in digits.iter_mut().rev() {
            *digit = ALPHABET[(n % 62) as usize];
            n /= 62;
        }
        digits.iter().copied().map(char::from).collect()
    }
}

/// How a key is shown once it was shown: `sk-hearth-AbC…`.
pub fn masked(id: &str) -> String {
    format!("{PREFIX}{}…", id.chars().take(3).collect::<String>())
}

/// Letters and digits, each as likely as any other: bytes that would favour some are thrown away.
pub fn random_base62(n: usize) -> Result<String, getrandom::Error> {
    let mut text = String::with_capacity(n);
    while text.len() < n {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes)?;
        text.extend(bytes.into_iter().filter_map(fair).take(n - text.len()));
    }
    Ok(text)
}

fn fair(byte: u8) -> Option<char> {
    const FAIR: u8 = 248; // 4 × 62
    (byte < FAIR).then(|| char::from(ALPHABET[usize::from(byte % 62)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_a_typo_is_not() {
        let key = Credential::generate().expect("randomness");
        let text = key.reveal();
        assert_eq!(text.len(), "sk-hearth-".len() + 12 + 1 + 43 + 6);
        let read = Credential::parse(&text).expect("its own form");
        assert_eq!((read.id(), read.secret()), (key.id(), key.secret()));
        for at in PREFIX.len()..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'x' { b'y' } else { b'x' };
            assert!(Credential::parse(&String::from_utf8(typo).unwrap()).is_none(), "{at}");
        }
        for wrong in ["", "sk-hearth-", "sk-other", &text[1..], &text[..text.len() - 1], &format!("{text}0")] {
            assert!(Credential::parse(wrong).is_none());
        }
    }

    /// Of another form, with the check that belongs to it.
    #[test]
    fn a_key_of_another_form_is_none() {
        let parse = |id: &str, secret: &str| {
            let credential = Credential { id: id.to_owned(), secret: secret.to_owned() };
            Credential::parse(&credential.reveal()).map(|read| (read.id, read.secret))
        };
        let (id, secret) = ("0123456789Az", "x".repeat(43));
        assert_eq!(parse(id, &secret), Some((id.to_owned(), secret.clone())));
        for (wrong, why) in
            [("0123456789A", "short"), ("0123456789Azz", "long"), ("0123456789A_", "no letter"), ("", "none")]
        {
            assert_eq!(parse(wrong, &secret), None, "{why}");
        }
        // The last has a letter where its secret would be cut.
        for (n, wrong) in ["x".repeat(42), "x".repeat(44), "_".repeat(43), "é".repeat(22)].iter().enumerate() {
            assert_eq!(parse(id, wrong), None, "{n}");
        }
        assert_eq!(parse(id, &format!("{}é", "x".repeat(41))), None);
        assert_eq!(parse(id, &format!("{}é", "x".repeat(42))), None);
    }

    /// CRC-32 as zlib has it, in base62 with the largest digit first: scanners of secrets compute it too.
    #[test]
    fn the_check_is_a_crc_of_what_stands_before_it() {
        let key = Credential { id: "0123456789Az".into(), secret: "x".repeat(43) };
        assert_eq!(key.reveal(), format!("sk-hearth-0123456789Az-{}2ZLfhA", "x".repeat(43)));
    }

    #[test]
    fn each_letter_is_as_likely_as_any_other() {
        let letters: Vec<char> = (0..=255).filter_map(fair).collect();
        assert_eq!(letters.len(), 4 * 62);
        assert!(
            ALPHABET.iter().all(|letter| letters.iter().filter(|other| **other == char::from(*letter)).count() == 4)
        );
        for n in [0, 1, 63, 64, 65, 1000] {
            let text = random_base62(n).expect("randomness");
            assert!(text.len() == n && text.bytes().all(|byte| ALPHABET.contains(&byte)));
        }
    }

    #[test]
    fn a_key_is_shown_by_its_beginning_and_its_hash_not_at_all() {
        assert_eq!((masked("AbCdEf"), masked("A")), ("sk-hearth-AbC…".to_owned(), "sk-hearth-A…".to_owned()));
        assert_eq!(format!("{:?}", KeyHash([1; 32])), "KeyHash(…)");
    }

    #[test]
    fn secrets_are_fresh_and_hashes_depend_on_the_pepper() {
        let (a, b) = (Credential::generate().expect("randomness"), Credential::generate().expect("randomness"));
        assert_ne!(a.secret(), b.secret());
        assert_ne!(a.id(), b.id());
        let (one, two) = (Pepper::new([1; 32]), Pepper::new([2; 32]));
        assert!(bool::from(one.hash("s").is(&one.hash("s"))));
        assert!(!bool::from(one.hash("s").is(&two.hash("s"))) && !bool::from(one.hash("s").is(&one.hash("t"))));
        assert_ne!(one.derive("audit"), one.derive("other"));
    }

    /// RFC 4231, test case 2, with its key padded as HMAC does.
    #[test]
    fn the_mac_is_hmac_sha256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = hmac(&key, &[b"what do ya want ", b"for nothing?"]);
        let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
