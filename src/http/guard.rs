//! What each client address has used up: connections, requests, wrong keys.
//!
//! **Bound:** the connections' table has at most one entry a connection; the others at most [`ADDRESSES_MAX`] each. When
//! one is full, entries that no longer matter are dropped; if all matter, the one that matters the shortest makes room.
//! An IPv6 client has a whole /64 to choose from, so that is what counts as its address.

use super::client::ClientRules;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Addresses remembered for their requests, and for their wrong keys.
const ADDRESSES_MAX: usize = 16_384;
/// The time over which wrong keys are counted.
const WINDOW: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Guard {
    tables: Arc<Mutex<Tables>>,
}

#[derive(Default)]
struct Tables {
    open: HashMap<IpAddr, u32>,
    /// When the bucket of an address is full again.
    full_at: HashMap<IpAddr, Instant>,
    failures: HashMap<IpAddr, Failures>,
}

#[derive(Clone, Copy)]
struct Failures {
    n: u32,
    /// The end of the window they are counted in, or of the ban.
    until: Instant,
    is_banned: bool,
}

/// A connection that counts for its address until it is dropped.
pub(super) struct OpenFrom {
    tables: Arc<Mutex<Tables>>,
    address: IpAddr,
}

impl Drop for OpenFrom {
    fn drop(&mut self) {
        let mut tables = lock(&self.tables);
        if let Some(n) = tables.open.get_mut(&self.address) {
            *n -= 1;
            if *n == 0 {
                tables.open.remove(&self.address);
            }
        }
    }
}

impl Guard {
    /// Counts a connection; `None` when its address has all that it may have. 0: no limit.
    pub(super) fn connect(&self, address: IpAddr, max: u32) -> Option<OpenFrom> {
        let address = owner(address);
        let mut tables = lock(&self.tables);
        let n = tables.open.entry(address).or_default();
        if max > 0 && *n >= max {
            return None;
        }
        *n += 1;
        drop(tables);
        Some(OpenFrom { tables: Arc::clone(&self.tables), address })
    }

    /// Counts a request. Errors: the time until the address may send one.
    pub(super) fn request(&self, address: IpAddr, rules: &ClientRules, now: Instant) -> Result<(), Duration> {
        if rules.requests_per_second <= 0.0 {
            return Ok(());
        }
        let each = Duration::from_secs_f32(1.0 / rules.requests_per_second);
        let depth = each.saturating_mul(rules.burst.max(1));
        let mut tables = lock(&self.tables);
        let address = owner(address);
        make_room(&mut tables.full_at, address, now, |full_at| *full_at);
        let full_at = tables.full_at.entry(address).or_insert(now);
        let next = (*full_at).max(now) + each;
        match next.saturating_duration_since(now).checked_sub(depth) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *full_at = next;
                Ok(())
            }
        }
    }

    /// The time for which the address is locked out, if it is.
    pub(super) fn banned(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let tables = lock(&self.tables);
        let failures = tables.failures.get(&owner(address))?;
        (failures.is_banned && failures.until > now).then(|| failures.until - now)
    }

    /// Counts a wrong key. Returns whether that was one too many.
    pub(super) fn failed(&self, address: IpAddr, rules: &ClientRules, now: Instant) -> bool {
        if rules.failures_max == 0 {
            return false;
        }
        let mut tables = lock(&self.tables);
        let address = owner(address);
        make_room(&mut tables.failures, address, now, |failures| failures.until);
        let fresh = Failures { n: 0, until: now + WINDOW, is_banned: false };
        let failures = tables.failures.entry(address).or_insert(fresh);
        if failures.until <= now {
            *failures = fresh;
        }
        failures.n = failures.n.saturating_add(1);
        let is_new = failures.n >= rules.failures_max && !failures.is_banned;
        if is_new {
            (failures.is_banned, failures.until) = (true, now + rules.ban);
        }
        is_new
    }
}

/// Makes sure that `address` can have an entry.
fn make_room<T>(table: &mut HashMap<IpAddr, T>, address: IpAddr, now: Instant, end: impl Fn(&T) -> Instant) {
    if table.len() < ADDRESSES_MAX || table.contains_key(&address) {
        return;
    }
    table.retain(|_, entry| end(entry) > now);
    if table.len() >= ADDRESSES_MAX
        && let Some(first) = table.iter().min_by_key(|(_, entry)| end(entry)).map(|(address, _)| *address)
    {
        table.remove(&first);
    }
}

/// Whoever has the address has all that share this prefix.
fn owner(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn lock(tables: &Mutex<Tables>) -> MutexGuard<'_, Tables> {
    // Nothing panics while holding the lock; a poisoned one still holds whole entries.
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_come_back_and_one_more_is_refused() {
        let guard = Guard::default();
        let held: Vec<_> = (0..3).map(|_| guard.connect(at("192.0.2.1"), 3)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(guard.connect(at("192.0.2.1"), 3).is_none());
        assert!(guard.connect(at("192.0.2.2"), 3).is_some());
        drop(held);
        assert!(guard.connect(at("192.0.2.1"), 3).is_some());
        assert!(lock(&guard.tables).open.is_empty(), "what is closed leaves nothing behind");
        let any: Vec<_> = (0..500).filter_map(|_| guard.connect(at("::1"), 0)).collect();
        assert_eq!(any.len(), 500);
    }

    #[test]
    fn a_whole_prefix_is_one_client() {
        let guard = Guard::default();
        let _held = guard.connect(at("2001:db8::1"), 1);
        assert!(guard.connect(at("2001:db8::ffff"), 1).is_none());
        assert!(guard.connect(at("2001:db8:0:1::1"), 1).is_some());
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rules = ClientRules { requests_per_second: 2.0, burst: 3, ..Default::default() };
        let (guard, start) = (Guard::default(), Instant::now());
        let ask = |ms: u64| guard.request(at("192.0.2.1"), &rules, start + Duration::from_millis(ms));
        assert!((0..3).all(|_| ask(0).is_ok()));
        let wait = ask(0).unwrap_err();
        assert!((wait.as_secs_f32() - 0.5).abs() < 0.001, "{wait:?}");
        // A refusal takes nothing.
        assert!(ask(501).is_ok());
        assert!(ask(502).is_err());
        assert!((0..3).all(|_| ask(5000).is_ok()) && ask(5000).is_err());
        assert!(guard.request(at("192.0.2.2"), &rules, start).is_ok());
        // Two a second over ten seconds, whatever the steps.
        let n = (0..10_000).filter(|ms| ask(10_000 + ms).is_ok()).count();
        assert!((20..=23).contains(&n), "{n}");
    }

    #[test]
    fn wrong_keys_lock_an_address_out_for_a_while() {
        let rules = ClientRules { failures_max: 3, ban: Duration::from_secs(300), ..Default::default() };
        let (guard, start) = (Guard::default(), Instant::now());
        let after = |s: u64| start + Duration::from_secs(s);
        let one = at("192.0.2.1");
        assert!(!guard.failed(one, &rules, after(0)) && !guard.failed(one, &rules, after(1)));
        // The window is over, so counting begins again.
        assert!(!guard.failed(one, &rules, after(61)) && !guard.failed(one, &rules, after(62)));
        assert_eq!(guard.banned(one, after(62)), None);
        assert!(guard.failed(one, &rules, after(63)));
        assert_eq!(guard.banned(one, after(63)), Some(Duration::from_secs(300)));
        assert_eq!(guard.banned(at("192.0.2.2"), after(63)), None);
        assert!(!guard.failed(one, &rules, after(64)), "a ban is not made longer");
        assert_eq!(guard.banned(one, after(363)), None);
        assert!(!guard.failed(one, &rules, after(364)));
    }

    #[test]
    fn the_tables_are_bounded() {
        let rules = ClientRules { failures_max: 2, requests_per_second: 0.001, burst: 1, ..ClientRules::default() };
        let (guard, now) = (Guard::default(), Instant::now());
        for n in 0..(ADDRESSES_MAX as u32 + 100) {
            let address = IpAddr::from(n.to_be_bytes());
            guard.failed(address, &rules, now);
            assert!(guard.request(address, &rules, now).is_ok());
        }
        let tables = lock(&guard.tables);
        assert_eq!((tables.failures.len(), tables.full_at.len()), (ADDRESSES_MAX, ADDRESSES_MAX));
    }
}
