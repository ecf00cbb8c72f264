//! All keys and teams in memory, swapped whole at every change: a request sees one state or the next, never between.

use super::credential::{Credential, KeyHash, Pepper};
use super::{BudgetRecord, KeyRecord, Principal, TeamRecord};
use crate::gateway::Error;
use crate::gateway::spec::Role;
use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Most keys, and most teams, of one server.
pub const KEYS_MAX: usize = 100_000;

/// A key with what proves it.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    pub record: Arc<KeyRecord>,
    pub hash: KeyHash,
    /// The secret before the last rotation, and until when (unix milliseconds) it opens too.
    pub previous: Option<(KeyHash, i64)>,
}

/// Keys and teams of `hearth.toml`, as the file said when it was last read.
#[derive(Debug, Default)]
pub struct Fixed {
    /// By the SHA-256 of the whole key.
    pub keys: HashMap<[u8; 32], Arc<KeyRecord>>,
    /// Their ids; the teams themselves are among the others.
    pub teams: HashSet<String>,
}

/// Keys and teams by their ids; revoked keys are not among them.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub keys: HashMap<String, KeyEntry>,
    pub teams: HashMap<String, Arc<TeamRecord>>,
    /// Those that keys and teams share.
    pub budgets: HashMap<String, Arc<BudgetRecord>>,
    pub fixed: Arc<Fixed>,
}

impl Snapshot {
    /// The same, of keys that requests may be running with: who holds one of `before` is told of its revocation here.
    pub fn following(mut self, before: &Snapshot) -> Self {
        let follow = |record: &Arc<KeyRecord>, known: &Arc<KeyRecord>| {
            Arc::new(known.changed(record.spec.clone(), record.team.clone(), record.blocked))
        };
        for (id, entry) in &mut self.keys {
            if let Some(known) = before.keys.get(id) {
                entry.record = follow(&entry.record, &known.record);
            }
        }
        let fixed = |(digest, record): (&[u8; 32], &Arc<KeyRecord>)| {
            let known = before.fixed.keys.get(digest).filter(|known| known.id == record.id);
            (*digest, known.map_or_else(|| Arc::clone(record), |known| follow(record, known)))
        };
        let keys = self.fixed.keys.iter().map(fixed).collect();
        self.fixed = Arc::new(Fixed { keys, teams: self.fixed.teams.clone() });
        self
    }
}

pub struct Keyring {
    pepper: Pepper,
    /// What an unknown id is compared with, so that it takes as long as a known one.
    dummy: KeyHash,
    snapshot: ArcSwap<Snapshot>,
    /// Running requests of a key that is revoked are cut.
    cuts: bool,
}

impl Keyring {
    pub fn new(pepper: Pepper, snapshot: Snapshot, cuts: bool) -> Self {
        let dummy = KeyHash(pepper.derive("no key has this hash"));
        Self { pepper, dummy, snapshot: ArcSwap::from_pointee(snapshot), cuts }
    }

    pub fn pepper(&self) -> &Pepper {
        &self.pepper
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts the next state in place. Requests of keys that it lacks, or has blocked, are told at once.
    pub fn replace(&self, next: Snapshot) {
        let next = Arc::new(next);
        let before = self.snapshot.swap(Arc::clone(&next));
        for (id, entry) in &before.keys {
            if self.cuts && next.keys.get(id).is_none_or(|entry| entry.record.is_shut()) {
                entry.record.cut.cancel();
            }
        }
        let is_gone = |digest: &[u8; 32]| !next.fixed.keys.contains_key(digest);
        for (_, record) in before.fixed.keys.iter().filter(|(digest, _)| self.cuts && is_gone(digest)) {
            record.cut.cancel();
        }
    }

    /// Whether `presented` opens the API from `ip` at `now` (unix milliseconds).
    ///
    /// Errors: `Unauthorized`, the same for a key that is unknown, wrong, expired, blocked or revoked · `Forbidden` for one
    /// that is right and may not be used so.
    pub fn authenticate(&self, presented: &str, ip: Option<IpAddr>, now: i64) -> Result<Principal, Error> {
        let record = self.find(presented, now).ok_or(Error::Unauthorized)?;
        if !record.spec.admits(ip) {
            return Err(Error::Forbidden("This API key may not be used from this address."));
        }
        if !record.spec.has(Role::Data) {
            return Err(Error::Forbidden("This API key is not for requests to models."));
        }
        Ok(Principal { partition: record.partition, key: Some(record) })
    }

    /// The key that `presented` is, if it opens anything at `now`.
    pub fn find(&self, presented: &str, now: i64) -> Option<Arc<KeyRecord>> {
        let snapshot = self.snapshot.load();
        if !snapshot.fixed.keys.is_empty() {
            let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
            let fixed = snapshot.fixed.keys.get(&digest).filter(|key| !key.is_shut() && !key.is_expired(now));
            if let Some(key) = fixed {
                return Some(Arc::clone(key));
            }
        }
        let credential = Credential::parse(presented)?;
        let hash = self.pepper.hash(credential.secret());
        let entry = snapshot.keys.get(credential.id());
        // Both comparisons are made for every key, known or not, rotated or not.
        let current = entry.map_or(&self.dummy, |entry| &entry.hash).is(&hash);
        let previous = entry.and_then(|entry| entry.previous.as_ref()).filter(|(_, until)| now < *until);
        let is_known = current | previous.map_or(&self.dummy, |(hash, _)| hash).is(&hash);
        let record = entry.map(|entry| &entry.record);
        let is_open = record.is_some_and(|record| !record.is_shut() && !record.is_expired(now));
        match record {
            Some(record) if bool::from(is_known) & is_open => Some(Arc::clone(record)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::spec::{KeySpec, TeamSpec};

    fn ring(change: impl FnOnce(&mut KeyEntry)) -> (Keyring, Credential) {
        let pepper = Pepper::new([7; 32]);
        let key = Credential::generate().expect("randomness");
        let record = Arc::new(KeyRecord::new(key.id().to_owned(), KeySpec::default(), None, 0, false));
        let mut entry = KeyEntry { record, hash: pepper.hash(key.secret()), previous: None };
        change(&mut entry);
        let snapshot = Snapshot { keys: HashMap::from([(key.id().to_owned(), entry)]), ..Snapshot::default() };
        (Keyring::new(pepper, snapshot, true), key)
    }

    fn with_spec(change: impl FnOnce(&mut KeySpec)) -> (Keyring, Credential) {
        ring(|entry| {
            let mut spec = KeySpec::default();
            change(&mut spec);
            entry.record = Arc::new(KeyRecord::new(entry.record.id.clone(), spec, None, 0, false));
        })
    }

    #[test]
    fn every_way_to_be_refused_reads_the_same() {
        let (keyring, key) = ring(|_| {});
        assert!(keyring.authenticate(&key.reveal(), None, 0).is_ok());
        let other = Credential::generate().expect("randomness").reveal();
        let wrong = Credential::regenerate(key.id()).expect("randomness").reveal();
        for presented in ["", "sk-1", other.as_str(), wrong.as_str()] {
            assert_eq!(keyring.authenticate(presented, None, 0), Err(Error::Unauthorized));
        }
        let (keyring, key) = with_spec(|spec| spec.expires = Some(100));
        assert!(keyring.authenticate(&key.reveal(), None, 99).is_ok());
        assert_eq!(keyring.authenticate(&key.reveal(), None, 100), Err(Error::Unauthorized));
        let (keyring, key) = ring(|entry| {
            entry.record = Arc::new(KeyRecord::new(entry.record.id.clone(), KeySpec::default(), None, 0, true));
        });
        assert_eq!(keyring.authenticate(&key.reveal(), None, 0), Err(Error::Unauthorized));
    }

    #[test]
    fn a_right_key_in_the_wrong_place_is_forbidden() {
        let (keyring, key) = with_spec(|spec| spec.roles = vec![Role::Auditor]);
        assert!(matches!(keyring.authenticate(&key.reveal(), None, 0), Err(Error::Forbidden(_))));
        let (keyring, key) = with_spec(|spec| spec.cidr = vec!["127.0.0.0/8".parse().unwrap()]);
        assert!(keyring.authenticate(&key.reveal(), Some([127, 0, 0, 1].into()), 0).is_ok());
        assert!(matches!(keyring.authenticate(&key.reveal(), Some([10, 0, 0, 1].into()), 0), Err(Error::Forbidden(_))));
    }

    #[test]
    fn the_secret_before_a_rotation_opens_until_its_grace_is_over() {
        let (keyring, new) = ring(|_| {});
        let old = Credential::regenerate(new.id()).expect("randomness");
        let mut rotated = Snapshot::clone(&keyring.snapshot());
        let entry = rotated.keys.get_mut(new.id()).expect("the key");
        entry.previous = Some((keyring.pepper().hash(old.secret()), 50));
        keyring.replace(rotated);
        let old = old.reveal();
        assert!(keyring.authenticate(&new.reveal(), None, 49).is_ok());
        assert!(keyring.authenticate(&old, None, 49).is_ok());
        assert_eq!(keyring.authenticate(&old, None, 50), Err(Error::Unauthorized));
        assert!(keyring.authenticate(&new.reveal(), None, 50).is_ok());
        // Rotated back to what it was.
        let (keyring, key) = ring(|entry| entry.previous = Some((entry.hash, 50)));
        assert!(keyring.authenticate(&key.reveal(), None, 49).is_ok());
    }

    #[test]
    fn whoever_holds_a_revoked_key_is_told_and_nobody_else() {
        let (keyring, key) = ring(|_| {});
        let principal = keyring.authenticate(&key.reveal(), None, 0).expect("open");
        let cut = principal.key().expect("a record").cut.clone();
        keyring.replace(Snapshot::clone(&keyring.snapshot()));
        assert!(!cut.is_cancelled());
        keyring.replace(Snapshot::default());
        assert!(cut.is_cancelled());
        assert_eq!(keyring.authenticate(&key.reveal(), None, 0), Err(Error::Unauthorized));
    }

    #[test]
    fn keys_of_a_file_that_is_read_anew_stay_with_who_holds_them() {
        let (keyring, key) = ring(|_| {});
        let digest = |text: &str| -> [u8; 32] { Sha256::digest(text.as_bytes()).into() };
        let with = |names: &[&str]| {
            let record = |name: &&str| {
                (digest(name), Arc::new(KeyRecord::new((*name).to_owned(), KeySpec::default(), None, 0, false)))
            };
            let fixed = Fixed { keys: names.iter().map(record).collect(), teams: HashSet::new() };
            // As read from the database: the same key, nobody's yet.
            let mut next = Snapshot { fixed: Arc::new(fixed), ..Snapshot::clone(&keyring.snapshot()) };
            for entry in next.keys.values_mut() {
                let spec = KeySpec { user: Some("u".into()), ..Default::default() };
                entry.record = Arc::new(KeyRecord::new(entry.record.id.clone(), spec, None, 0, false));
            }
            next.following(&keyring.snapshot())
        };
        keyring.replace(with(&["a", "b"]));
        let cut = |presented: &str| keyring.authenticate(presented, None, 0).expect("open").cut();
        let (a, b, own) = (cut("a"), cut("b"), cut(&key.reveal()));
        keyring.replace(with(&["a"]));
        assert!(!a.is_cancelled() && b.is_cancelled() && !own.is_cancelled());
        assert_eq!(keyring.authenticate("b", None, 0), Err(Error::Unauthorized));
        keyring.replace(with(&[]));
        keyring.replace(Snapshot::default());
        assert!(a.is_cancelled() && own.is_cancelled(), "through two readings");
    }

    #[test]
    fn a_key_of_a_file_opens_until_it_expires_or_its_team_is_blocked() {
        let opens = |expires, is_shut, now| {
            let team = TeamRecord { id: "t".into(), spec: TeamSpec::default(), created: 0, blocked: is_shut };
            let spec = KeySpec { expires, ..KeySpec::default() };
            let record = Arc::new(KeyRecord::new("a".to_owned(), spec, Some(Arc::new(team)), 0, false));
            let digest: [u8; 32] = Sha256::digest(b"sk-from-a-file").into();
            let fixed = Fixed { keys: HashMap::from([(digest, record)]), teams: HashSet::new() };
            let snapshot = Snapshot { fixed: Arc::new(fixed), ..Snapshot::default() };
            Keyring::new(Pepper::new([7; 32]), snapshot, true).authenticate("sk-from-a-file", None, now).is_ok()
        };
        assert!(opens(None, false, 100) && opens(Some(100), false, 99));
        assert!(!opens(Some(100), false, 100), "expired");
        assert!(!opens(None, true, 0) && !opens(Some(100), true, 99), "blocked");
    }

    #[test]
    fn a_tenant_is_the_key_or_the_team_that_shares() {
        let team = |shares| {
            let spec = TeamSpec { shares, ..Default::default() };
            Some(Arc::new(TeamRecord { id: "t".into(), spec, created: 0, blocked: false }))
        };
        let partition = |id: &str, team| KeyRecord::new(id.to_owned(), KeySpec::default(), team, 0, false).partition;
        assert_eq!(partition("a", team(true)), partition("b", team(true)));
        assert_ne!(partition("a", team(false)), partition("b", team(false)));
        assert_ne!(partition("a", None), 0);
        assert_eq!(partition("a", None), partition("a", team(false)));
    }
}
