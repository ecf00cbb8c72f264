//! Words at rest: ChaCha20-Poly1305 with chance for a nonce, bound to what they are about.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

pub(super) use ring::aead::NONCE_LEN;

fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new)
}

/// `text` sealed under `key`, bound to `about`; `None`: the system has no randomness to give.
pub(super) fn seal(key: &[u8; 32], about: &[u8], text: &[u8]) -> Option<([u8; NONCE_LEN], Vec<u8>)> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).ok()?;
    let mut sealed = text.to_vec();
    cipher(key)?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), &mut sealed).ok()?;
    Some((nonce, sealed))
}

/// What was sealed; `None` for another key, another place, or changed bytes.
pub(super) fn unseal(key: &[u8; 32], about: &[u8], nonce: [u8; NONCE_LEN], sealed: &[u8]) -> Option<Vec<u8>> {
    let mut text = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let n = cipher(key)?.open_in_place(nonce, Aad::from(about), &mut text).ok()?.len();
    text.truncate(n);
    Some(text)
}
