//! Who asks: keys as digests, compared in constant time, never shown.
//!
//! # Design
//! Two kinds open the API. Static keys (`--api-key`) have no record and may use everything. Keys of the ring, which exist
//! with `--data-dir`, have one: a [`KeyRecord`] with what the operator granted.

mod credential;
mod ring;

pub use credential::{Credential, KeyHash, Pepper, hmac, masked, random_base62};
pub use ring::{Fixed, KEYS_MAX, KeyEntry, Keyring, Snapshot};

use super::Error;
use super::names::fits;
use super::spec::{Egress, KeySpec, SharedSpec, TeamSpec};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};
use tokio_util::sync::CancellationToken;

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

impl ConstantTimeEq for ApiKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// Who a request comes from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Principal {
    partition: u64,
    key: Option<Arc<KeyRecord>>,
}

/// A key of the ring, as it was when its request came in.
#[derive(Debug)]
pub struct KeyRecord {
    /// The public part of the key.
    pub id: String,
    pub spec: KeySpec,
    pub team: Option<Arc<TeamRecord>>,
    /// Unix milliseconds.
    pub created: i64,
    pub blocked: bool,
    partition: u64,
    /// Cancelled when the key is revoked or blocked.
    pub(super) cut: CancellationToken,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TeamRecord {
    pub id: String,
    pub spec: TeamSpec,
    pub created: i64,
    pub blocked: bool,
}

/// A budget that keys and teams share.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetRecord {
    pub id: String,
    pub spec: SharedSpec,
    pub created: i64,
}

impl Principal {
    /// Whoever holds this key.
    pub fn of(key: Arc<KeyRecord>) -> Self {
        Self { partition: key.partition, key: Some(key) }
    }

    /// Which tenant it is: KV prefixes, stored responses and cached answers are shared within it only. 0 where no keys are
    /// set.
    pub fn partition(&self) -> u64 {
        self.partition
    }

    /// Its record; none where no keys are set, and for static keys.
    pub fn key(&self) -> Option<&Arc<KeyRecord>> {
        self.key.as_ref()
    }

    /// Whether the model `id` may be used under `name`.
    pub fn may_use(&self, id: &str, name: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.may_use(id, name))
    }

    /// By which names rules may know the key: its id and its alias.
    pub(super) fn key_names(&self) -> [Option<&str>; 2] {
        let key = self.key.as_deref();
        [key.map(|key| key.id.as_str()), key.and_then(|key| key.spec.alias.as_deref())]
    }

    /// The id of its team.
    pub(super) fn team(&self) -> Option<&str> {
        self.key.as_ref()?.team.as_ref().map(|team| team.id.as_str())
    }

    /// The budgets that it shares with others: its own, and its team's if that is another.
    pub(super) fn shared_budgets(&self) -> impl Iterator<Item = &String> {
        let key = self.key.as_deref();
        let own = key.and_then(|key| key.spec.budget_id.as_ref());
        let team = key.and_then(|key| key.team.as_ref()?.spec.budget_id.as_ref());
        own.into_iter().chain(team.filter(|team| own != Some(team)))
    }

    /// Whether the key and its team let requests be answered by other servers. Static keys leave that to the server.
    pub(super) fn may_leave(&self) -> bool {
        let Some(key) = &self.key else { return true };
        let team = key.team.as_ref().is_none_or(|team| team.spec.egress == Egress::Allowed);
        key.spec.egress == Egress::Allowed && team
    }

    /// Cancelled when the key is revoked or blocked while its request runs.
    pub fn cut(&self) -> CancellationToken {
        self.key.as_ref().map_or_else(CancellationToken::new, |key| key.cut.clone())
    }
}

impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        let id = |principal: &Self| principal.key.as_ref().map(|key| key.id.clone());
        self.partition == other.partition && id(self) == id(other)
    }
}

impl KeyRecord {
    pub fn new(id: String, spec: KeySpec, team: Option<Arc<TeamRecord>>, created: i64, blocked: bool) -> Self {
        let partition = match &team {
            Some(team) if team.spec.shares => tenant(&[b"team\0", team.id.as_bytes()]),
            _ => tenant(&[b"key\0", id.as_bytes()]),
        };
        Self { id, spec, team, created, blocked, partition, cut: CancellationToken::new() }
    }

    /// The same key after a change: who holds the one before is told of a revocation of this one.
    pub fn changed(&self, spec: KeySpec, team: Option<Arc<TeamRecord>>, blocked: bool) -> Self {
        let mut next = Self::new(self.id.clone(), spec, team, self.created, blocked);
        if !self.cut.is_cancelled() {
            next.cut = self.cut.clone();
        }
        next
    }

    /// Blocked, itself or with its team.
    pub fn is_shut(&self) -> bool {
        self.blocked || self.team.as_ref().is_some_and(|team| team.blocked)
    }

    pub fn is_expired(&self, now: i64) -> bool {
        self.spec.expires.is_some_and(|expires| now >= expires)
    }

    /// What the key allows and its team allows.
    fn may_use(&self, id: &str, name: &str) -> bool {
        let allows = |models: &[String]| {
            models.is_empty()
                || models.iter().any(|granted| fits(granted, id) || (!name.is_empty() && fits(granted, name)))
        };
        allows(&self.spec.models) && self.team.as_ref().is_none_or(|team| allows(&team.spec.models))
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
    Ok(Principal { partition: tenant(&[&digest]), key: None })
}

/// The number of a tenant. A digest of its own: it travels to the engine and must not be a piece of another. Never 0.
pub(super) fn tenant(name: &[&[u8]]) -> u64 {
    let digest = name.iter().fold(Sha256::new().chain_update(b"partition"), |digest, part| digest.chain_update(part));
    let bytes = digest.finalize().first_chunk().copied().unwrap_or([1; 8]);
    u64::from_le_bytes(bytes).max(1)
}

#[cfg(test)]
mod fuzz_tests;

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
        // Written twice, it is one key.
        let twice: Vec<ApiKey> = ["one", "two", "one"].into_iter().filter_map(ApiKey::new).collect();
        assert_eq!(authenticate(&twice, Some("one")), authenticate(&keys, Some("one")));
    }

    /// A key of a team, both with a budget that others share.
    fn of_team(own: Option<&str>, shared: Option<&str>) -> Principal {
        let spec = TeamSpec { budget_id: shared.map(str::to_owned), ..Default::default() };
        let team = TeamRecord { id: "team".into(), spec, created: 0, blocked: false };
        let spec = KeySpec { budget_id: own.map(str::to_owned), alias: Some("alias".into()), ..Default::default() };
        Principal::of(Arc::new(KeyRecord::new("key".into(), spec, Some(Arc::new(team)), 0, false)))
    }

    #[test]
    fn a_principal_is_who_holds_the_key() {
        let nobody = Principal::default();
        assert_eq!((nobody.partition(), nobody.key().is_none()), (0, true));
        assert_eq!((nobody.key_names(), nobody.team(), nobody.shared_budgets().count()), ([None, None], None, 0));
        let ada = of_team(Some("own"), Some("shared"));
        assert_eq!(ada.partition(), KeyRecord::new("key".into(), KeySpec::default(), None, 0, false).partition);
        assert_eq!((ada.key_names(), ada.team()), ([Some("key"), Some("alias")], Some("team")));
        assert_eq!(ada.shared_budgets().collect::<Vec<_>>(), ["own", "shared"]);
        let budgets = |own, shared| of_team(own, shared).shared_budgets().cloned().collect::<Vec<_>>();
        assert_eq!(budgets(Some("both"), Some("both")), ["both"], "a request counts once");
        assert_eq!(
            (budgets(None, Some("shared")), budgets(Some("own"), None)),
            (vec!["shared".into()], vec!["own".into()])
        );
        // One and the same where both the tenant and the key are.
        let other = |id: &str, team: Option<Arc<TeamRecord>>| {
            Principal::of(Arc::new(KeyRecord::new(id.into(), KeySpec::default(), team, 1, true)))
        };
        assert_eq!(ada, other("key", None));
        assert_ne!(ada, other("other", None));
        assert_ne!(ada, nobody);
        let spec = TeamSpec { shares: true, ..Default::default() };
        let team = Some(Arc::new(TeamRecord { id: "team".into(), spec, created: 0, blocked: false }));
        assert_ne!(other("a", team.clone()), other("b", team.clone()), "two keys of one tenant");
        assert_ne!(other("key", team), ada, "one key of two tenants");
    }

    #[test]
    fn requests_leave_where_the_key_and_its_team_both_let_them() {
        assert!(Principal::default().may_leave(), "that is the server's to say");
        let may_leave = |key, team: Option<Egress>| {
            let team = team.map(|egress| {
                let spec = TeamSpec { egress, ..Default::default() };
                Arc::new(TeamRecord { id: "t".into(), spec, created: 0, blocked: false })
            });
            let spec = KeySpec { egress: key, ..Default::default() };
            Principal::of(Arc::new(KeyRecord::new("k".into(), spec, team, 0, false))).may_leave()
        };
        use Egress::{Allowed, Never};
        assert!(may_leave(Allowed, None) && may_leave(Allowed, Some(Allowed)));
        assert!(!may_leave(Never, None) && !may_leave(Never, Some(Allowed)));
        assert!(!may_leave(Allowed, Some(Never)) && !may_leave(Never, Some(Never)));
    }

    #[test]
    fn who_has_no_record_may_use_every_model() {
        let listed = KeySpec { models: vec!["a".into()], ..Default::default() };
        let listed = Principal::of(Arc::new(KeyRecord::new("k".into(), listed, None, 0, false)));
        assert!(listed.may_use("a", "x") && !listed.may_use("b", "x"));
        assert!(Principal::default().may_use("b", "x"));
    }

    #[test]
    fn a_key_is_shut_with_its_team_and_ends_with_its_time() {
        let key = |blocked, team: Option<bool>| {
            let team = team
                .map(|blocked| Arc::new(TeamRecord { id: "t".into(), spec: TeamSpec::default(), created: 0, blocked }));
            KeyRecord::new("k".into(), KeySpec::default(), team, 0, blocked)
        };
        assert!(!key(false, None).is_shut() && !key(false, Some(false)).is_shut());
        assert!(key(true, None).is_shut() && key(true, Some(false)).is_shut() && key(false, Some(true)).is_shut());
        assert!(!key(false, None).is_expired(i64::MAX));
        let ends = KeyRecord::new("k".into(), KeySpec { expires: Some(5), ..Default::default() }, None, 0, false);
        assert_eq!([4, 5, 6].map(|now| ends.is_expired(now)), [false, true, true]);
    }

    #[test]
    fn the_number_of_a_tenant_depends_on_each_part_of_its_name() {
        assert_eq!(tenant(&[b"key\0", b"a"]), tenant(&[b"key\0", b"a"]));
        assert_ne!(tenant(&[b"key\0", b"a"]), tenant(&[b"key\0", b"b"]));
        assert_ne!(tenant(&[b"key\0", b"a"]), tenant(&[b"team\0", b"a"]));
    }

    #[test]
    fn a_key_is_never_shown_and_never_empty() {
        assert!(ApiKey::new("").is_none());
        assert_eq!(format!("{:?}", ApiKey::new("secret")), "Some(ApiKey(…))");
        let is = |one, other| bool::from(ApiKey::new(one).unwrap().ct_eq(&ApiKey::new(other).unwrap()));
        assert!(is("secret", "secret") && !is("secret", "Secret"));
    }

    #[test]
    fn a_list_of_models_grants_names_and_an_id_all_of_them() {
        let spec = |models: &[&str]| KeySpec {
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            ..Default::default()
        };
        let team = |models: &[&str]| {
            let spec = TeamSpec { models: spec(models).models, ..Default::default() };
            Some(Arc::new(TeamRecord { id: "t".into(), spec, created: 0, blocked: false }))
        };
        let key = |spec, team| KeyRecord::new("k".into(), spec, team, 0, false);
        assert!(key(spec(&[]), None).may_use("a", "any"));
        let listed = key(spec(&["gpt-4o", "b*"]), None);
        assert!(listed.may_use("a", "gpt-4o") && listed.may_use("a", "GPT-4o:latest") && listed.may_use("b1", "alias"));
        assert!(!listed.may_use("a", "a") && !listed.may_use("a", "") && !listed.may_use("a", "gpt-4o-mini"));
        assert!(!key(spec(&["a"]), team(&["b"])).may_use("a", "a"), "both lists bind");
        assert!(key(spec(&[]), team(&["a"])).may_use("a", "x"));
    }

    #[test]
    fn a_changed_key_keeps_who_holds_it() {
        let key = KeyRecord::new("k".into(), KeySpec::default(), None, 0, false);
        let blocked = key.changed(KeySpec::default(), None, true);
        key.cut.cancel();
        assert!(blocked.cut.is_cancelled());
        assert!(!blocked.changed(KeySpec::default(), None, false).cut.is_cancelled(), "open again");
    }
}
