//! The processes of this machine, as far as `/proc` tells. Elsewhere than on Linux nothing is known of them.
//!
//! The number of a process is given to another one later. Its number and the moment at which it began tell it from all
//! others of this boot. A process that has ended counts as gone, even if its parent has not asked for its status yet.

use std::fs;

/// A line of the table.
#[derive(Debug, PartialEq)]
struct TableLine {
    state: char,
    group: u32,
    /// In ticks since the machine's boot.
    began: u64,
}

impl TableLine {
    /// The line of a process that runs. `None` also if nothing is known of it.
    fn of(id: u32) -> Option<Self> {
        TableLine::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?).filter(TableLine::runs)
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

/// When this process began. `None` if it does not run, or is not known.
pub(crate) fn began(id: u32) -> Option<u64> {
    TableLine::of(id).map(|line| line.began)
}

/// Whether the process with this number that began then still runs.
pub(crate) fn is_running(id: u32, began: u64) -> bool {
    self::began(id) == Some(began)
}

/// Whether any process of this group still runs.
pub(crate) fn runs_in_group(group: u32) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(TableLine::of).any(|line| line.group == group)
}

/// The name of this boot of the machine, since the moments at which processes begin count from it. Empty if it has none.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
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
        let began = began(child.id()).unwrap();
        assert!(is_running(child.id(), began) && !is_running(child.id(), began + 1));
        assert!(runs_in_group(TableLine::of(child.id()).unwrap().group));
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_running(child.id(), began) {
            assert!(std::time::Instant::now() < until, "it does not end");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
