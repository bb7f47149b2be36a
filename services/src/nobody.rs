//! Commands that do not run as root, for servers that refuse to.

use crate::{Error, process};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user that runs the server if this process is root.
const NOBODY: u32 = 65534;

/// A command that dies with this process, and does not run as root.
pub(crate) fn command(program: PathBuf, dir: &Path) -> Command {
    if !is_root() {
        return process::command(program, dir);
    }
    let mut command = process::command("setpriv", dir);
    command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]);
    // The folders above the server's own may be closed to other users. A change of user clears the death signal, so it
    // is set again.
    command.args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--pdeathsig=KILL"]).arg(program);
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Gives a file or a folder to the server's user.
pub(crate) fn own(path: &Path) -> Result<(), Error> {
    match is_root() {
        true => chown(path, Some(NOBODY), Some(NOBODY)).map_err(Error::io(path.to_string_lossy())),
        false => Ok(()),
    }
}

/// Writes a file that belongs to the server's user.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(path.to_string_lossy()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io(path.to_string_lossy()))?;
    own(path)
}

/// Runs a command to its end, with `words` as its input, and returns its output.
pub(crate) fn run(what: &str, command: &mut Command, words: &str) -> Result<String, Error> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(Error::io(what))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(words.as_bytes()).map_err(Error::io(what))?;
    }
    let output = child.wait_with_output().map_err(Error::io(what))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::exchange(what, String::from_utf8_lossy(&output.stderr).trim())),
    }
}
