//! The folder of the books: its lock, and the secrets that are made at the first start.

use super::BooksError;
use crate::gateway::keys::random_base62;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub(super) const DATABASE: &str = "hearth.db";
pub(super) const PEPPER: &str = "pepper";
pub(super) const AUDIT: &str = "audit.key";
pub(super) const CONTENT: &str = "content.key";
pub const MASTER: &str = "master.key";
pub const SOCKET: &str = "admin.sock";
const LOCK: &str = "lock";
const MASTER_PREFIX: &str = "sk-hearth-master-";
const SECRET_BYTES_MAX: u64 = 4096;

fn io(path: &Path) -> impl Fn(std::io::Error) -> BooksError {
    let path = path.to_owned();
    move |error| BooksError::Io { path: path.clone(), error }
}

/// Makes the folder, for its owner alone, and takes its lock, which is held as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, BooksError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    let path = dir.join(LOCK);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BooksError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(&path)(error)),
    }
}

/// 32 random bytes of a file, made if `may_make` and it is missing.
pub(super) fn secret(dir: &Path, name: &str, may_make: bool) -> Result<[u8; 32], BooksError> {
    let path = dir.join(name);
    if !path.exists() {
        if !may_make {
            return Err(BooksError::LostSecret { path });
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| BooksError::NoRandomness)?;
        write_new(&path, &bytes)?;
        return Ok(bytes);
    }
    let bytes = read_small(&path)?;
    <[u8; 32]>::try_from(bytes).map_err(|_| BooksError::BadSecret { path })
}

/// The admin's secret, made at the first start, and whether it was made now.
pub(super) fn master(dir: &Path) -> Result<(String, bool), BooksError> {
    let path = dir.join(MASTER);
    if !path.exists() {
        let secret = random_base62(43).map_err(|_| BooksError::NoRandomness)?;
        let text = format!("{MASTER_PREFIX}{secret}");
        write_new(&path, format!("{text}\n").as_bytes())?;
        return Ok((text, true));
    }
    read_master(dir).map(|text| (text, false))
}

/// The admin's secret as it stands in its file; an operator may have written another.
pub fn read_master(dir: &Path) -> Result<String, BooksError> {
    let path = dir.join(MASTER);
    let text = String::from_utf8(read_small(&path)?).map_err(|_| BooksError::BadSecret { path: path.clone() })?;
    let text = text.trim().to_owned();
    // As long as what is made here; a word that can be guessed opens everything.
    let is_good = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good { Ok(text) } else { Err(BooksError::BadSecret { path }) }
}

fn read_small(path: &Path) -> Result<Vec<u8>, BooksError> {
    let metadata = fs::metadata(path).map_err(io(path))?;
    if metadata.len() > SECRET_BYTES_MAX {
        return Err(BooksError::BadSecret { path: path.to_owned() });
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!("{} can be read by others than its owner (chmod 600)", path.display());
    }
    fs::read(path).map_err(io(path))
}

/// Written beside and moved, so that a crash leaves no half of a secret.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), BooksError> {
    let beside: PathBuf = path.with_extension("part");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside).map_err(io(&beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let _lock = lock(dir).expect("free");
        assert!(matches!(lock(dir), Err(BooksError::Locked { .. })));
        let pepper = secret(dir, PEPPER, true).expect("made");
        assert_eq!(secret(dir, PEPPER, false).expect("read"), pepper);
        assert!(matches!(secret(dir, AUDIT, false), Err(BooksError::LostSecret { .. })));
        let (master, is_new) = super::master(dir).expect("made");
        assert!(is_new && master.len() == MASTER_PREFIX.len() + 43);
        assert_eq!(super::master(dir).expect("read"), (master, false));
        for name in [PEPPER, MASTER] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        fs::write(dir.join(MASTER), "short\n").unwrap();
        assert!(matches!(read_master(dir), Err(BooksError::BadSecret { .. })));
        fs::write(dir.join(PEPPER), [1; 31]).unwrap();
        assert!(matches!(secret(dir, PEPPER, false), Err(BooksError::BadSecret { .. })));
    }
}
