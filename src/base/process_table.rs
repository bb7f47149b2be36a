//! The processes of this machine, as far as `/proc` tells. Elsewhere than on Linux nothing is known of them.
//!
//! The number of a process is given to another one later. Its number and the moment at which it began tell it from all
//! others of this boot. A process that has ended counts as gone, even if its parent has not asked for its status yet.
//! A look that fails proves nothing, so its error goes to the caller: a process that lacks descriptors must not take
//! others for gone.

use std::fs;
use std::io::{self, ErrorKind};

/// A line of the table.
#[derive(Debug, PartialEq)]
struct TableLine {
    state: char,
    group: u32,
    /// In ticks since the machine's boot.
    began: u64,
}

impl TableLine {
    /// The line of a process, also of one that has ended and whose parent has not asked for its status. `None` if there
    /// is no such process.
    fn of(id: u32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{id}/stat")) {
            Ok(text) => TableLine::parse(&text).map(Some).ok_or_else(|| ErrorKind::InvalidData.into()),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in brackets, and may have brackets and spaces in it.
        let (_, facts) = text.rsplit_once(')')?;
        let mut facts = facts.split_whitespace();
        let state = facts.next()?.chars().next()?;
        let group = facts.nth(1)?.parse().ok()?;
        let began = facts.nth(16)?.parse().ok()?;
        Some(TableLine { state, group, began })
    }

    fn runs(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// Whether the error says that there is no such process, or no table at all. A process of another user may be hidden,
/// and is none of those that are asked for.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
        || error.raw_os_error() == Some(libc::ESRCH)
}

/// When this process began. `None` if there is none, or nothing is known of it.
pub(crate) fn began(id: u32) -> io::Result<Option<u64>> {
    Ok(TableLine::of(id)?.map(|line| line.began))
}

/// Whether the process with this number that began then still runs.
pub(crate) fn is_running(id: u32, began: u64) -> io::Result<bool> {
    Ok(TableLine::of(id)?.is_some_and(|line| line.began == began && line.runs()))
}

/// Whether any process of this group still runs.
pub(crate) fn runs_in_group(group: u32) -> io::Result<bool> {
    let entries = match fs::read_dir("/proc") {
        Err(error) if is_gone(&error) => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if TableLine::of(id)?.is_some_and(|line| line.group == group && line.runs()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether any process still runs of the group that the process with this number, which began then, has led. As long as
/// one does, the kernel gives the number to nobody else.
pub(crate) fn runs_in_group_of(leader: u32, began: u64) -> io::Result<bool> {
    match TableLine::of(leader)? {
        Some(other) if other.began != began => Ok(false),
        _ => runs_in_group(leader),
    }
}

/// The name of this boot of the machine, since the moments at which processes begin count from it. Empty if it has none.
pub(crate) fn boot() -> io::Result<String> {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Err(error) if is_gone(&error) => Ok(String::new()),
        name => Ok(name?.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let text = "4242 (a) S (b c)) S 1 4200 4200 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 200 0\n";
        assert_eq!(TableLine::parse(text), Some(TableLine { state: 'S', group: 4200, began: 98765 }));
        assert_eq!(TableLine::parse("4242 (a"), None);
        assert_eq!(TableLine::parse("4242 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_has_ended_is_gone_before_its_parent_asks() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let began = began(child.id()).unwrap().unwrap();
        let is_running = |began| is_running(child.id(), began).unwrap();
        assert!(is_running(began) && !is_running(began + 1));
        assert!(runs_in_group(TableLine::of(child.id()).unwrap().unwrap().group).unwrap());
        kill(child.id());
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_running(began) {
            assert!(std::time::Instant::now() < until, "it does not end");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(TableLine::of(child.id()).unwrap(), None);
    }

    #[cfg(target_os = "linux")]
    fn kill(id: u32) {
        assert!(std::process::Command::new("kill").args(["-KILL", &id.to_string()]).status().unwrap().success());
    }

    /// The test runs itself in a process that may open no further file.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_look_that_fails_is_no_proof_of_an_end() {
        const LACKS: &str = "PROCESS_TABLE_LACKS_DESCRIPTORS";
        if std::env::var_os(LACKS).is_none() {
            let name = concat!(module_path!(), "::a_look_that_fails_is_no_proof_of_an_end");
            let name = name.split_once("::").unwrap().1;
            let mut alone = std::process::Command::new("sh");
            alone.args(["-c", r#"ulimit -n 24; exec "$0" "$@""#]).arg(std::env::current_exe().unwrap());
            let status = alone.args(["--exact", name]).env(LACKS, "1").status().unwrap();
            return assert!(status.success());
        }
        let me = std::process::id();
        let began = began(me).unwrap().unwrap();
        let open: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        assert!(is_running(me, began).is_err() && runs_in_group(me).is_err() && super::began(me).is_err());
        assert!(boot().is_err());
        drop(open);
        assert!(is_running(me, began).unwrap());
    }
}
