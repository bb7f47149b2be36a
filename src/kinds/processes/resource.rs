//! [`ChildProcess`], the resource that is a child process, and its configuration.
//!
//! A thread starts each run of the process, notes it for later processes, and waits for its end. It lives as long as the
//! process, so that a command that asks the kernel for a signal at the end of the thread that started it gets that at the
//! end of this program. A run whose attempt is given up is killed, wherever it is on its way to its handle.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::base::error::Failure;
use crate::base::run_folder::{LeftBehind, RunFolder};
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
/// With [`restart`](Self::restart) each end is a loss, and the pool starts it again, with growing pauses. The processes
/// that the last run has left behind get SIGTERM before that, and SIGKILL after [`grace`](Self::grace). Once the pool
/// closes, or its readiness is lowered, no end is a loss, and nothing is started again.
///
/// Two are the same if they have the same settings, and commands with the same program, arguments, environment and folder.
/// The standard streams of a command, its user and group, and code that runs before it, are not compared.
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
    /// The program, its arguments, its environment and its folder, by which commands are compared.
    text: String,
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
        let text = format!("{command:?}");
        let command = Arc::new(Mutex::new(command));
        ChildProcess { command, program, text, grace: GRACE, restart: false, phase: Phase::Tasks }
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
        let ChildProcess { command: _, program, text, grace, restart, phase } = self;
        (program, text, grace, restart, phase)
            == (&other.program, &other.text, &other.grace, &other.restart, &other.phase)
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
        self.kill(run).await?;
        Err(Failure::transient(format!("it did not end within {:?} of SIGTERM, and was killed", self.grace)))
    }

    /// Kills all that is left of the group of a run.
    async fn kill(&self, run: &ChildRun) -> Result<(), Failure> {
        run.signal(EndSignal::Kill)?;
        match run.gone(KILLED).await {
            true => Ok(()),
            false => Err(Failure::transient(format!("it did not end within {KILLED:?} of SIGKILL"))),
        }
    }

    /// Starts a run of the process on a thread of its own, which notes it and waits for its end. The pool is told of that
    /// by the link. `known` is the handle that it is a run of.
    async fn begin(&self, link: &Link, known: Option<&Child>) -> Result<Child, Failure> {
        let (start, started) = oneshot::channel();
        let (command, restart, link) = (Arc::clone(&self.command), self.restart, link.clone());
        let (told, generation) = (link.clone(), link.generation());
        let folder = known.map(|child| child.0.folder.clone());
        let closing_waits = link.delay_closing();
        let run = move |start: oneshot::Sender<_>| {
            let is_first = folder.is_none();
            let folder = folder.unwrap_or_else(|| make_folder(&told));
            let spawned = command.lock().spawn();
            let run = match spawned {
                Ok(process) => Arc::new(ChildRun::new(process)),
                Err(error) => {
                    drop(start.send(Err(error)));
                    return folder.filter(|_| is_first).into_iter().for_each(|folder| remove(&folder));
                }
            };
            if let Some(Err(error)) = folder.as_ref().map(|folder| folder.note(run.id, told.name())) {
                told.warn("no later process will be told of this child process if it stays behind", Some(&error));
            }
            drop(start.send(Ok((KillOnDrop { run: Arc::clone(&run), is_kept: false }, folder.clone()))));
            drop(closing_waits);
            run.watch(|ended| match ended {
                _ if run.is_ending() => {}
                // A supervisor may signal the child process as well as this program.
                ended if restart && !told.is_closing() => told.lost(generation, ended.to_string()),
                ChildEnd(Some(status)) if status.success() => {
                    tracing::debug!(resource = %told.name(), "the child process is done");
                }
                ended => told.warn("the child process has ended", Some(&ended)),
            });
            // Nobody else has the folder of an attempt that was given up.
            folder.and_then(Arc::into_inner).iter().for_each(remove);
        };
        drop(thread(run).map_err(Failure::transient)?.send(start));
        let (kill, folder) = match link.going_on("starting the process", started).await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) if is_permanent(&error) => return Err(Failure::permanent(error)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_panicked) => return Err(Failure::permanent("the process could not be started")),
        };
        let child = match known {
            Some(child) => child.clone(),
            None => Child::new(Arc::clone(&kill.run), folder, link),
        };
        if !child.begin(&kill.run) {
            return Err(Failure::permanent("it is closed"));
        }
        kill.keep();
        Ok(child)
    }
}

/// Makes the folder for the note of a child process. Those that earlier runs of this program have left are told of
/// meanwhile. A child process runs without a folder too.
fn make_folder(link: &Link) -> Option<Arc<RunFolder>> {
    let told = link.clone();
    let tell = move |LeftBehind { id, resource, .. }: LeftBehind| {
        told.warn(format!("child process {id} ({resource}) of an earlier run of this program still runs"), None);
    };
    let made = RunFolder::new(&std::env::temp_dir(), tell);
    made.inspect_err(|error| link.warn("a later process cannot be told of this child process", Some(error)))
        .ok()
        .map(Arc::new)
}

/// Removes the folder with the note of a child process. One that cannot be removed is left to the sweep of a later
/// process.
fn remove(folder: &RunFolder) {
    if let Err(error) = folder.remove() {
        tracing::debug!(%error, "the folder of a child process stays");
    }
}

/// Kills a process whose start is given up.
struct KillOnDrop {
    run: Arc<ChildRun>,
    is_kept: bool,
}

impl KillOnDrop {
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if !self.is_kept {
            // An error means that it may not be signalled, and nobody is left who could be told.
            let _ = self.run.signal(EndSignal::Kill);
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

    /// The end of a process is told once, and is no loss unless it is to be started again.
    async fn probe(&self, _: &Child) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, child: Child) -> Result<(), Failure> {
        let run = child.last_run();
        let ended = self.end(&run).await;
        if run.is_gone() {
            drop(apart(move || child.0.folder.iter().for_each(|folder| remove(folder))).await);
        }
        ended
    }

    async fn recover(&self, link: &Link, lost: &Child) -> Result<bool, Failure> {
        if link.is_closing() {
            return Err(Failure::permanent("the pool closes next, so it is not started again"));
        }
        let run = lost.run();
        // It was cut before this.
        if !link.going_on("ending all that its last run has started", run.gone(self.grace)).await {
            self.kill(&run).await?;
        }
        self.begin(link, Some(lost)).await?;
        Ok(true)
    }

    /// Kills the process. If it has ended by itself and is to be started again, those that it has left get SIGTERM first.
    fn cut(&self, child: &Child) {
        let run = child.run();
        let ending = match run.end() {
            Some(_) if !child.0.link.is_closing() => EndSignal::Term,
            _ => EndSignal::Kill,
        };
        // An error is that of a process that may not be signalled, which closing has told.
        let _ = run.signal(ending);
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
        let ChildProcess { program, grace, restart, phase, command: _, text: _ } = self;
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
