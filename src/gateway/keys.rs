//! API keys: kept as digests, compared in constant time, never shown.

use super::Error;
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// A key, of which only the SHA-256 is kept: enough to recognise it, useless in a core dump.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// `None` for an empty text, which would let everybody in.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Sha256::digest(text.as_bytes()).into()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Principal {
    partition: u64,
}

impl Principal {
    /// Which KV prefixes this caller may share: those of its own key. 0 where no keys are set.
    pub fn partition(self) -> u64 {
        self.partition
    }

    /// By which names rules may know the key.
    pub(super) fn key_names(&self) -> [Option<&str>; 2] {
        [None, None]
    }

    pub(super) fn team(&self) -> Option<&str> {
        None
    }

    /// Whether the key's requests may be answered by other servers.
    pub(super) fn may_leave(&self) -> bool {
        true
    }
}

/// Compares against every key, whatever matched before, so that the time taken tells nothing.
pub(super) fn authenticate(keys: &[ApiKey], presented: Option<&str>) -> Result<Principal, Error> {
    if keys.is_empty() {
        return Ok(Principal::default());
    }
    let digest: [u8; 32] = Sha256::digest(presented.unwrap_or_default().as_bytes()).into();
    let found = keys.iter().fold(Choice::from(0), |found, key| found | key.0.ct_eq(&digest));
    if !bool::from(found) {
        return Err(Error::Unauthorized);
    }
    // A second digest: the partition travels to the engine and must not be a piece of the first.
    let tenant = Sha256::new().chain_update(b"partition").chain_update(digest).finalize();
    let bytes = tenant.first_chunk().copied().unwrap_or([1; 8]);
    Ok(Principal { partition: u64::from_le_bytes(bytes).max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configured_key_opens_the_door() {
        let keys: Vec<ApiKey> = ["one", "two"].into_iter().filter_map(ApiKey::new).collect();
        let one = authenticate(&keys, Some("one")).unwrap();
        let two = authenticate(&keys, Some("two")).unwrap();
        assert_ne!(one.partition(), two.partition());
        assert_eq!(authenticate(&keys, Some("one")), Ok(one));
        for wrong in [None, Some(""), Some("on"), Some("onee"), Some("One")] {
            assert_eq!(authenticate(&keys, wrong), Err(Error::Unauthorized));
        }
        assert_eq!(authenticate(&[], None), Ok(Principal::default()));
    }

    #[test]
    fn a_key_is_never_shown_and_never_empty() {
        assert!(ApiKey::new("").is_none());
        assert_eq!(format!("{:?}", ApiKey::new("secret")), "Some(ApiKey(…))");
    }
}
