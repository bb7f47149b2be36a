//! [`ChildProcess`], the resource that is a child process, and its configuration.
//!
//! A thread starts each run of the process and waits for its end. It lives as long as the process, so that a command
//! that asks the kernel for a signal at the end of the thread that started it gets that at the end of this program.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::base::error::Failure;
use crate::base::run_folder::{LeftBehind, RunFolder, SWEEPING};
use crate::base::runtime::{apart, thread};
use crate::kinds::processes::child::Child;
use crate::kinds::processes::run::{ChildEnd, ChildRun, EndSignal};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A child process, from its command. The pool starts it as it is first asked for, and ends it as it closes: it sends
/// SIGTERM to the process and to all that it has started, waits, and sends SIGKILL to those that are left.
///
/// The process leads a group of its own, so Ctrl-C in a terminal reaches it by the pool alone, and it cannot read from
/// the terminal. A process that it starts may leave the group, and is not ended then. On Windows the process is ended at
/// once, and what it has started is not.
///
/// A process that ends by itself with success leaves health as it is. Any other end fails health, and is a warning.
/// With [`restart`](Self::restart) each end is a loss, and the pool starts it again, with growing pauses.
///
/// SIGKILL, `abort`, `_exit` and a second signal end this program without ending its child processes. If they still run
/// when the same program next starts a child process, it is told of them by a warning.
///
/// ```no_run
/// # async fn doc() -> Result<(), resource_pool::Error> {
/// use std::{process::Command, time::Duration};
/// use resource_pool::{ChildProcess, ResourcePool};
///
/// let feeder = ChildProcess::new(Command::new("feeder")).grace(Duration::from_secs(2)).restart(true);
/// let feeder = ResourcePool::global().child("feeder", feeder).await?;
/// println!("{:?}", feeder.id()?);
/// # Ok(()) }
/// ```
pub struct ChildProcess {
    command: Arc<Mutex<Command>>,
    /// The name of the program, without its folder and its arguments, which may have secrets in them.
    program: String,
    grace: Duration,
    restart: bool,
    phase: Phase,
}

/// The default of [`ChildProcess::grace`]. Half of the time that a step of the phase tasks has.
const GRACE: Duration = Duration::from_secs(5);
/// How long a process that was killed has to end. The kernel ends it at once, unless it waits for a device.
const KILLED: Duration = Duration::from_secs(1);

impl ChildProcess {
    /// Makes a resource of a command. Its process has 5 s to end after SIGTERM, is not started again, and closes with
    /// the tasks.
    pub fn new(command: Command) -> Self {
        let mut command = command;
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
        let command = Arc::new(Mutex::new(command));
        ChildProcess { command, program, grace: GRACE, restart: false, phase: Phase::Tasks }
    }

    /// Sets how long the process has to end after SIGTERM before it gets SIGKILL. Defaults to 5 s. The step of closing,
    /// which has 10 s by default, ends it sooner if it is shorter.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets whether the process is started again when it has ended by itself. Defaults to `false`.
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// Sets the phase in which it is ended. Defaults to [`Phase::Tasks`].
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Whether both were made of the same command and settings.
    pub(crate) fn is_same(&self, other: &ChildProcess) -> bool {
        // Each lock is taken by itself. The text has the program, its arguments and its environment.
        let text = |child: &ChildProcess| format!("{:?}", child.command.lock());
        (self.grace, self.restart, self.phase) == (other.grace, other.restart, other.phase) && text(self) == text(other)
    }

    /// Ends a run of the process, with all that is left of its group.
    async fn end(&self, run: &ChildRun) -> Result<(), Failure> {
        if run.is_gone() {
            return Ok(());
        }
        run.signal(EndSignal::Term)?;
        if run.gone(self.grace).await {
            return Ok(());
        }
        run.signal(EndSignal::Kill)?;
        let problem = match run.gone(KILLED).await {
            true => format!("it did not end within {:?} of SIGTERM, and was killed", self.grace),
            false => format!("it did not end within {KILLED:?} of SIGKILL"),
        };
        Err(Failure::transient(problem))
    }

    /// Starts the process on a thread that waits for its end. `ended` runs on that thread then.
    async fn start(&self, ended: impl FnOnce(&ChildRun, ChildEnd) + Send + 'static) -> Result<Arc<ChildRun>, Failure> {
        let (start, started) = oneshot::channel::<std::io::Result<Arc<ChildRun>>>();
        let command = Arc::clone(&self.command);
        let run = move |start: oneshot::Sender<_>| {
            let spawned = command.lock().spawn();
            let run = match spawned {
                Ok(process) => Arc::new(ChildRun::new(process)),
                Err(error) => return drop(start.send(Err(error))),
            };
            if start.send(Ok(Arc::clone(&run))).is_err() {
                // The attempt was given up meanwhile.
                let _ = run.signal(EndSignal::Kill);
                run.watch();
                run.is_gone();
                return;
            }
            let end = run.watch();
            ended(&run, end);
        };
        drop(thread(run).map_err(Failure::transient)?.send(start));
        match started.await {
            Ok(Ok(run)) => Ok(run),
            Ok(Err(error)) if is_permanent(&error) => Err(Failure::permanent(error)),
            Ok(Err(error)) => Err(error.into()),
            Err(_panicked) => Err(Failure::permanent("the process could not be started")),
        }
    }

    /// Starts a run of the process, whose end the pool is told of by the link. `known` is the handle that it is a run of.
    async fn begin(&self, link: &Link, known: Option<&Child>) -> Result<Child, Failure> {
        let (restart, told, generation) = (self.restart, link.clone(), link.generation());
        let run = self.start(move |run, ended| {
            // Reaps the process, unless others of its group still run.
            run.is_gone();
            match ended {
                _ if run.is_ending() => {}
                ended if restart => told.lost(generation, ended.to_string()),
                ChildEnd(Some(status)) if status.success() => {
                    tracing::debug!(resource = %told.name(), "the child process is done");
                }
                ended => told.warn("the child process has ended", Some(&ended)),
            }
        });
        let run = run.await?;
        let kill = KillOnDrop(Some(Arc::clone(&run)));
        let child = match known {
            Some(child) => child.clone(),
            None => Child::new(Arc::clone(&run), folder(link).await),
        };
        if let Err(error) = note(&child, run.id, link).await {
            link.warn("no later process will be told of this child process if it stays behind", Some(&error));
        }
        if !child.begin(&run) {
            return Err(Failure::permanent("it is closed"));
        }
        kill.forget();
        Ok(child)
    }
}

/// Makes the folder for the note of a child process, and tells of those that earlier runs of this program have left. A
/// child process runs without a folder too.
async fn folder(link: &Link) -> Option<RunFolder> {
    let made = link.apart(SWEEPING, || RunFolder::new(&std::env::temp_dir())).await;
    match made.and_then(|made| Ok(made?)) {
        Ok((folder, left)) => {
            for LeftBehind { id, resource, .. } in &left {
                link.warn(
                    format!("child process {id} ({resource}) of an earlier run of this program still runs"),
                    None,
                );
            }
            Some(folder)
        }
        Err(error) => {
            link.warn("a later process cannot be told of this child process", Some(&error));
            None
        }
    }
}

/// Notes the present run of a child process, for later processes.
async fn note(child: &Child, id: u32, link: &Link) -> Result<(), Failure> {
    let (child, name) = (child.clone(), Arc::clone(link.name()));
    Ok(apart(move || child.0.folder.as_ref().map_or(Ok(()), |folder| folder.note(id, &name))).await??)
}

/// Kills a process whose start is given up.
struct KillOnDrop(Option<Arc<ChildRun>>);

impl KillOnDrop {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(run) = &self.0 {
            // An error means that it may not be signalled, and nobody is left who could be told.
            let _ = run.signal(EndSignal::Kill);
        }
    }
}

/// Whether no further attempt can mend it.
fn is_permanent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied | InvalidInput | IsADirectory | NotADirectory)
        || error.raw_os_error() == Some(libc::ENOEXEC)
}

impl Resource for ChildProcess {
    type Handle = Child;

    async fn connect(&self, link: &Link) -> Result<Child, Failure> {
        self.begin(link, None).await
    }

    async fn ping(&self, child: &Child) -> Result<(), Failure> {
        match child.run().end() {
            None => Ok(()),
            Some(ChildEnd(Some(status))) if status.success() => Ok(()),
            Some(ended) => Err(Failure::refused(ended.to_string())),
        }
    }

    async fn close(&self, child: Child) -> Result<(), Failure> {
        let run = child.last_run();
        let ended = self.end(&run).await;
        if run.is_gone() {
            // A folder that cannot be removed is left to the sweep of a later process.
            drop(apart(move || child.0.folder.as_ref().map(RunFolder::remove)).await);
        }
        ended
    }

    async fn recover(&self, link: &Link, lost: &Child) -> Result<bool, Failure> {
        // It was cut before this.
        lost.run().gone(KILLED).await;
        self.begin(link, Some(lost)).await?;
        Ok(true)
    }

    fn cut(&self, child: &Child) {
        // An error is that of a process that may not be signalled, which closing has told.
        let _ = child.run().signal(EndSignal::Kill);
    }

    fn endpoint(&self) -> String {
        self.program.clone()
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn usage(&self, child: &Child) -> Usage {
        let open = Some(usize::from(child.run().end().is_none()));
        Usage { max: Some(1), open, ..Usage::default() }
    }
}

impl From<Command> for ChildProcess {
    fn from(command: Command) -> Self {
        ChildProcess::new(command)
    }
}

// The arguments and the environment of the command may have secrets in them.
impl fmt::Debug for ChildProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChildProcess { program, grace, restart, phase, .. } = self;
        let mut fields = f.debug_struct("ChildProcess");
        fields.field("program", program).field("grace", grace).field("restart", restart).field("phase", phase);
        fields.finish_non_exhaustive()
    }
}

impl fmt::Display for ChildEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, "it ended by itself: {status}"),
            None => f.write_str("it ended by itself, and nobody knows how"),
        }
    }
}
