//! `target/services/`, with a folder for each server. The folder's name begins with the process that owns it.

use crate::{Error, Kind};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// The workspace's folder for all files that this crate writes.
pub(crate) fn root() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    // `join` keeps an absolute path as it is.
    workspace.join(target).join("services")
}

/// A fresh folder for one server of this process.
pub(crate) fn create(kind: Kind) -> Result<PathBuf, Error> {
    create_for(kind.name())
}

/// A fresh folder for a program of this name that this process runs.
pub(crate) fn create_for(name: &str) -> Result<PathBuf, Error> {
    static SWEPT: Once = Once::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    SWEPT.call_once(|| sweep(&root()));
    // Relaxed suffices, since the numbers only have to differ.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = root().join(format!("{}-{number}-{name}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Error::io(dir.to_string_lossy()))?;
    Ok(dir)
}

/// Removes the folders of processes that are gone. It runs before this process has made any, so folders under its own
/// number are old too.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
        let Some(owner) = owner else { continue };
        if owner == std::process::id() || !Path::new("/proc").join(owner.to_string()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
