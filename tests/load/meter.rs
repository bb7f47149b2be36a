//! Measures the descriptors, threads and memory that this process holds.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fmt, fs, thread};

/// Descriptors by kind, threads by name, and memory, without those of the test harness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The sockets that lead to one of the given ports.
    pub(crate) sockets: usize,
    /// Pipes, files, and event and epoll descriptors.
    pub(crate) others: usize,
    pub(crate) threads: BTreeMap<String, usize>,
    /// Resident memory in MiB.
    pub(crate) memory: usize,
}

/// Name prefixes of the threads that belong to the proxies, the load and the start of the servers.
const HARNESS: [&str; 4] = ["proxy-", "load-", "services-", "faults"];

impl Reading {
    /// Measures now. It counts sockets to these ports.
    pub(crate) fn take(ports: &[u16]) -> Reading {
        let local = sockets_to(ports);
        let mut reading = Reading { memory: resident(), ..Reading::default() };
        for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            match target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                Some(inode) => reading.sockets += usize::from(local.iter().any(|socket| socket == inode)),
                // The directory that this loop reads.
                None if target.starts_with("/proc/") => {}
                None => reading.others += 1,
            }
        }
        for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
            if !HARNESS.iter().any(|harness| name.starts_with(harness)) {
                let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
                *reading.threads.entry(name).or_default() += 1;
            }
        }
        reading
    }

    /// The reading to expect once the pool is closed: the same without sockets.
    pub(crate) fn closed(&self) -> Reading {
        Reading { sockets: 0, ..self.clone() }
    }

    /// Whether this reading is no higher than the earlier one, apart from the slack.
    fn is_within(&self, before: &Reading) -> bool {
        let sockets = if before.sockets == 0 { 0 } else { before.sockets + SLACK_SOCKETS };
        self.sockets <= sockets
            && self.others <= before.others
            && self.memory <= before.memory + SLACK_MIB
            && self.threads.iter().all(|(name, count)| before.threads.get(name).is_some_and(|was| count <= was))
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.threads.values().sum()
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reading { sockets, others, memory, .. } = self;
        write!(f, "{sockets} sockets, {others} other fds, {} threads, {memory} MiB", self.thread_count())
    }
}

/// How long the remains of a fault may stay: as long as a pool keeps an idle connection, and one round of the task that
/// closes those.
const SETTLE: Duration = Duration::from_secs(90);
/// How many more connections the drivers' pools may have, depending on concurrency.
const SLACK_SOCKETS: usize = 8;
/// Memory that an allocator keeps. It is no leak.
const SLACK_MIB: usize = 32;

/// glibc's allocator keeps the most that each of its arenas ever needed. Under load that is some tens of MiB, which
/// looks like a leak. With one arena that gives free memory back, a process that grows really holds more memory.
const ONE_ARENA: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_TOP_PAD_", "131072")];

/// Whether the memory of this process can be measured. If not, it runs the test of this name in a process whose memory
/// can be, and the caller has nothing more to do.
pub(crate) fn is_measurable(test: &str) -> bool {
    if env::var_os(ONE_ARENA[0].0).is_some() {
        return true;
    }
    let again = |how: &str| {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", test, how]).envs(ONE_ARENA);
        command
    };
    let listed = again("--list").output().expect("a child");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("1 test"), "no test is named {test}");
    let status = again("--nocapture").status().expect("a child");
    assert!(status.success(), "{test}: {status}");
    false
}

/// Waits until the process holds no more than before.
///
/// # Panics If that takes longer than `SETTLE`.
pub(crate) fn settled(what: &str, before: &Reading, ports: &[u16]) -> Reading {
    let began = Instant::now();
    loop {
        let now = Reading::take(ports);
        if now.is_within(before) {
            return now;
        }
        let threads = (&before.threads, &now.threads);
        assert!(began.elapsed() < SETTLE, "{what}: before: {before}; now: {now}; threads: {threads:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The inodes of this network namespace's sockets whose peer has one of these ports. They may belong to other
/// processes.
fn sockets_to(ports: &[u16]) -> Vec<String> {
    let mut inodes = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let peer = fields.get(2).and_then(|peer| peer.rsplit(':').next());
            let port = peer.and_then(|hex| u16::from_str_radix(hex, 16).ok());
            if port.is_some_and(|port| ports.contains(&port)) {
                inodes.extend(fields.get(9).map(|inode| (*inode).to_owned()));
            }
        }
    }
    inodes
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or_default() / 1024
}
