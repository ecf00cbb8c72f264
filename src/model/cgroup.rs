//! How much memory the kernel would still give this process. Reads /proc and /sys only.

use std::fs;
use std::path::{Path, PathBuf};

/// MemAvailable of /proc/meminfo, in bytes.
pub(super) fn mem_available() -> Option<u64> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least room below the memory limits of the cgroups that this process is in; `None` without a limit.
pub(super) fn headroom() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    headroom_under(Path::new("/sys/fs/cgroup"), &groups)
}

fn headroom_under(mount: &Path, groups: &str) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            if controllers.is_empty() {
                least(mount, path, &V2)
            } else if controllers.split(',').any(|name| name == "memory") {
                least(&mount.join("memory"), path, &V1)
            } else {
                None
            }
        })
        .min()
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

/// The least room of a group and all groups above it. Inside a container the path may lie above the mount; then the
/// mount itself is this process's group.
fn least(mount: &Path, path: &str, files: &Files) -> Option<u64> {
    let mut dir: PathBuf = mount.join(path.trim_start_matches('/'));
    if !dir.join(files.usage).exists() {
        dir = mount.to_owned();
    }
    let mut room: Option<u64> = None;
    while dir.starts_with(mount) {
        if let Some(here) = room_in(&dir, files) {
            room = Some(room.map_or(here, |room| room.min(here)));
        }
        if !dir.pop() {
            break;
        }
    }
    room
}

fn room_in(dir: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number, and v1 writes a number near 2^63: no limit either way.
    let limit = number(files.limit).filter(|limit| *limit < 1 << 60)?;
    let usage = number(files.usage)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cache = files.cache.iter().filter_map(|name| {
        stat.lines().find_map(|line| line.strip_prefix(name)).and_then(|n| n.trim().parse::<u64>().ok())
    });
    let used = usage.saturating_sub(cache.fold(0, u64::saturating_add));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(parse_meminfo("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_meminfo("MemTotal: 9 kB\n"), None);
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
}
