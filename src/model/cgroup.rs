//! How much memory the kernel would still give this process. Reads /proc and /sys only.

use std::fs;
use std::path::{Path, PathBuf};

/// MemAvailable of /proc/meminfo, in bytes.
pub(super) fn mem_available() -> Option<u64> {
    parse_kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// A line of /proc/meminfo, in bytes.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least room below the memory limits of the cgroups that this process is in; `None` without a limit.
pub(super) fn headroom() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    headroom_under(Path::new("/sys/fs/cgroup"), &groups)
}

fn headroom_under(mount: &Path, groups: &str) -> Option<u64> {
    let rooms = dirs(mount, groups).into_iter().filter_map(|(dir, files)| fill(&dir, files));
    rooms.map(|(used, limit)| limit.saturating_sub(used)).min()
}

/// How short memory is, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shortage {
    /// The part in use of what this process may have, 0 to 1, page cache apart: of the tightest limit of its cgroups, or of
    /// the whole machine where that is fuller.
    pub used: f64,
    /// Percent of the last ten seconds in which something waited for memory; `None`: this kernel doesn't say (PSI).
    pub stalled: Option<f64>,
    /// Times that the group ran into its limit, or had something killed for it.
    pub n_hits: u64,
}

impl Shortage {
    /// `root`: of /proc and /sys. `None`: nothing is said there of memory.
    pub fn now(root: &Path) -> Option<Self> {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
        let mount = root.join("sys/fs/cgroup");
        let all = dirs(&mount, &groups);
        let fullest =
            all.iter().filter_map(|(dir, files)| fill(dir, files)).fold(None, |most: Option<f64>, (used, limit)| {
                let part = used as f64 / limit.max(1) as f64;
                Some(most.map_or(part, |most| most.max(part)))
            });
        let meminfo = read(root.join("proc/meminfo")).unwrap_or_default();
        let machine = parse_kib(&meminfo, "MemTotal:").zip(parse_kib(&meminfo, "MemAvailable:"));
        let machine = machine.map(|(total, free)| 1.0 - free as f64 / total.max(1) as f64);
        let used = fullest.into_iter().chain(machine).reduce(f64::max)?;
        let own = all.first().map(|(dir, _)| dir);
        let pressure = own.and_then(|dir| read(dir.join("memory.pressure")));
        let pressure = pressure.or_else(|| read(root.join("proc/pressure/memory")));
        let events = own.and_then(|dir| read(dir.join("memory.events"))).unwrap_or_default();
        let n_hits = sum(&events, &["max ", "oom ", "oom_kill "]);
        Some(Self { used, stalled: pressure.as_deref().and_then(some_avg10), n_hits })
    }
}

/// `some avg10=1.50 avg60=…` of a PSI file. Source: Documentation/accounting/psi.rst of Linux.
fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10=")).and_then(|n| n.parse().ok())
}

/// File names of one version of the memory controller, and its counters of page cache that can be given back.
struct Files {
    limit: &'static str,
    usage: &'static str,
    cache: [&'static str; 2],
}

const V2: Files = Files { limit: "memory.max", usage: "memory.current", cache: ["inactive_file ", "active_file "] };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};

/// The folders of the groups in `groups` (/proc/self/cgroup) that count memory, each before all groups above it. Inside a
/// container the path may lie above the mount; then the mount itself is this process's group.
fn dirs(mount: &Path, groups: &str) -> Vec<(PathBuf, &'static Files)> {
    let mut all = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (mount, files) = match fields.next() {
            Some("") => (mount.to_owned(), &V2),
            Some(controllers) if controllers.split(',').any(|name| name == "memory") => (mount.join("memory"), &V1),
            _ => continue,
        };
        let Some(path) = fields.next() else { continue };
        let own = mount.join(path.trim_start_matches('/'));
        let own = if own.join(files.usage).exists() { own } else { mount.clone() };
        all.extend(own.ancestors().take_while(|dir| dir.starts_with(&mount)).map(|dir| (dir.to_owned(), files)));
    }
    all
}

/// The numbers of these lines of a file of counters together, each line a name (with its blank) and a number.
fn sum(text: &str, names: &[&str]) -> u64 {
    let number = |name: &&str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    names.iter().filter_map(number).fold(0, u64::saturating_add)
}

/// Bytes that a group uses, but for page cache, and may use; `None` without a limit.
fn fill(dir: &Path, files: &Files) -> Option<(u64, u64)> {
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number, and v1 writes a number near 2^63: no limit either way.
    let limit = number(files.limit).filter(|limit| *limit < 1 << 60)?;
    let usage = number(files.usage)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    Some((usage.saturating_sub(sum(&stat, &files.cache)), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(parse_kib("MemTotal: 9 kB\nMemAvailable:   2048 kB\n", "MemAvailable:"), Some(2 << 20));
        assert_eq!(parse_kib("MemTotal: 9 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_tightest_group_above_counts_and_page_cache_does_not() {
        let mount = tempfile::tempdir().expect("a temporary folder");
        let inner = mount.path().join("a/b");
        fs::create_dir_all(&inner).expect("a writable folder");
        let write = |dir: &Path, name: &str, text: &str| fs::write(dir.join(name), text).expect("a writable folder");
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.current", "100\n");
        let outer = mount.path().join("a");
        write(&outer, "memory.max", "1000\n");
        write(&outer, "memory.current", "600\n");
        write(&outer, "memory.stat", "anon 300\ninactive_file 200\nactive_file 100\n");
        assert_eq!(headroom_under(mount.path(), "0::/a/b\n"), Some(700));
        assert_eq!(headroom_under(mount.path(), "0::/elsewhere\n"), None);
    }

    #[test]
    fn a_shortage_is_that_of_the_fullest_and_says_who_waits() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
            fs::write(path, text).expect("a writable folder");
        };
        assert_eq!(Shortage::now(root.path()), None);
        write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 700 kB\n");
        let near = |used: f64, shortage: Option<Shortage>| {
            let shortage = shortage.expect("something is said");
            assert!((shortage.used - used).abs() < 1e-9, "{shortage:?}");
            (shortage.stalled, shortage.n_hits)
        };
        assert_eq!(near(0.3, Shortage::now(root.path())), (None, 0));
        write("proc/pressure/memory", "some avg10=2.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=1.00 total=3\n");
        write("proc/self/cgroup", "0::/slice/unit\n");
        write("sys/fs/cgroup/slice/memory.current", "950\n");
        write("sys/fs/cgroup/slice/memory.max", "1000\n");
        write("sys/fs/cgroup/slice/memory.stat", "inactive_file 50\nactive_file 0\n");
        write("sys/fs/cgroup/slice/unit/memory.current", "400\n");
        write("sys/fs/cgroup/slice/unit/memory.max", "max\n");
        assert_eq!(near(0.9, Shortage::now(root.path())), (Some(2.5), 0));
        write("sys/fs/cgroup/slice/unit/memory.pressure", "some avg10=40.00 avg60=1.00 total=9\n");
        write("sys/fs/cgroup/slice/unit/memory.events", "low 7\nhigh 9\nmax 3\noom 2\noom_kill 1\n");
        assert_eq!(near(0.9, Shortage::now(root.path())), (Some(40.0), 6));
        write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 20 kB\n");
        assert_eq!(near(0.98, Shortage::now(root.path())), (Some(40.0), 6));
    }
}
