//! Images in a folder of the operator's, which clients name as `file://PATH`.
//!
//! **Invariant:** what is read is a plain file below the folder, on a way without a link.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A folder, all links in its own path resolved.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    /// The file that `path` names below the folder; `None` when it leads elsewhere. Slashes may be doubled, as
    /// llama-server's clients write them; nothing is unescaped.
    pub(super) fn below(&self, path: &str) -> Option<PathBuf> {
        let is_odd = |part: &str| part == "." || part == ".." || part.contains(['\\', '\0', ':']);
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        (!parts.is_empty() && !parts.iter().any(|part| is_odd(part))).then(|| self.0.join(parts.join("/")))
    }
}

/// The bytes of a file that [`Folder::below`] named; blocks on the disk. Errors say no more than that it can't be had: a
/// client learns nothing of what else is there.
pub(super) fn read(path: &Path, n_bytes_max: usize) -> Result<Vec<u8>, String> {
    let lacking = || "there is no such file in the folder that images are read from".to_owned();
    let plain = |path: &Path| {
        let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
        // A link on the way would lead elsewhere.
        (path.canonicalize().ok()? == path).then_some(metadata)
    };
    let expected = plain(path).ok_or_else(lacking)?;
    let file = File::open(path).map_err(|_| lacking())?;
    let opened = file.metadata().map_err(|_| lacking())?;
    if !is_same(&expected, &opened) {
        return Err(lacking());
    }
    let mut data = Vec::new();
    file.take(n_bytes_max as u64 + 1).read_to_end(&mut data).map_err(|_| lacking())?;
    if data.len() > n_bytes_max {
        return Err(format!("it has more than {n_bytes_max} bytes"));
    }
    Ok(data)
}

/// Whether what was opened is what was looked at, and not put in its place meanwhile.
#[cfg(unix)]
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    one.is_file() && other.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_folder_are_named() {
        let folder = Folder("/media".into());
        for (path, expected) in [("a.png", "/media/a.png"), ("/a/b.png", "/media/a/b.png"), ("//a//b", "/media/a/b")] {
            assert_eq!(folder.below(path), Some(PathBuf::from(expected)));
        }
        for path in ["", "/", "..", "../a", "a/../../b", "./a", "a/..", "a\\..\\b", "a\0b", "C:/a"] {
            assert_eq!(folder.below(path), None, "{path:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_folders_and_what_is_too_large_are_not_read() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().canonicalize().expect("it is there");
        let (inside, outside) = (root.join("in"), root.join("out"));
        fs::create_dir_all(inside.join("sub")).expect("a writable folder");
        fs::create_dir(&outside).expect("a writable folder");
        fs::write(inside.join("sub/a.png"), b"abc").expect("a writable folder");
        fs::write(outside.join("b.png"), b"secret").expect("a writable folder");
        symlink(outside.join("b.png"), inside.join("link.png")).expect("links can be made");
        symlink(&outside, inside.join("way")).expect("links can be made");
        let folder = Folder(inside);
        let get = |path: &str, n: usize| read(&folder.below(path).expect("a path below"), n);
        assert_eq!(get("sub/a.png", 3), Ok(b"abc".to_vec()));
        assert_eq!(get("sub/a.png", 2), Err("it has more than 2 bytes".to_owned()));
        let lacking = get("nothing.png", 9);
        assert!(lacking.is_err());
        for path in ["link.png", "way/b.png", "sub", "way"] {
            assert_eq!(get(path, 9), lacking, "{path}");
        }
    }
}
