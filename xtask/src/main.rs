//! `cargo xtask`: everything that needs the four servers, and the models, in one command each.

mod bench;
mod child;
mod exits;
mod faults;
mod features;
mod fuzz;
mod hot;
mod mutants;
mod plot;
mod release;
mod results;
mod schema;
mod servers;
mod size;
mod soak;
mod tally;
mod test;
mod vectors;

use child::Child;
use servers::Servers;
use services::Kind;
use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask <verb> [arguments]

  setup         install what this machine lacks of MongoDB, RabbitMQ, ClickHouse and Redis
  demo [args]   set up, start the four servers privately, run the example `quant_strategy` on them
  test [--busy N] [--times N] [args]
                set up, start the servers, run `cargo test --workspace --no-fail-fast [args]`, so many times and beside so many
                busy loops; count tests per backend, name those that failed
  bench [part…] the duels with other pools and the bare drivers, all or these parts, on private servers; makes benches/RESULTS.md
                and its plots of what they measured; --render does so of what was measured before;
                `size` is what programs grow by and how long they compile, which takes a quarter of an hour, if asked for
  hot [--keep]  count the instructions of the hot paths; fails where one has grown by more than 5 % over what --keep kept last;
                needs valgrind and gungraun-runner
  features      lint each feature alone, with TLS and without, and look for drivers that it does not ask for
  schema [--check]
                write docs/resource-pool.toml and its JSON schema anew; --check only fails where they are out of date; no server
  faults [name] every fault on every kind (or the one: mongo, rabbitmq, clickhouse, redis, postgres, mysql) under load; keeps the tables in
                docs/reference/faults.md
  soak [--minutes N] [--seed N]
                load on all four backends and a fault every few seconds; 20 minutes unless told otherwise
  models [args] try every interleaving in the models of the core: no servers; LOOM_MAX_PREEMPTIONS bounds them
  fuzz [--minutes N]
                run each fuzz target for N minutes, 10 unless given; needs cargo-fuzz, and no server
  mutants [--minutes N] [file…]
                put one defect at a time into the core (or into these of its files) and run the core's own tests; an hour unless
                told otherwise, and the next run goes on; needs cargo-mutants, and no server
  vectors [filter]
                the tests of Chroma, pgvector and Milvus with 100,000 vectors each, in a network namespace; needs root
  exits [--rounds N] [filter]
                every way a process can end, 20 times unless told otherwise, on private servers
  sanitize [filter]
                the same on Redis alone, under AddressSanitizer; each once unless EXIT_ROUNDS says otherwise
  package [--verify]
                pack the two crates for a release, and check what is in them; `--verify` compiles them as users would
  semver [revision]
                compare the public interface with that of a revision, or of the last tag; needs cargo-semver-checks

Servers of your own are used instead of private ones if their URLs are in the environment:
  demo          MONGODB_URI, AMQP_URL, CLICKHOUSE_URL, REDIS_URL
  test          RESOURCE_POOL_TEST_MONGODB_URI, _AMQP_URL, _CLICKHOUSE_URL, _REDIS_URL
";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let done = match verb.as_str() {
        "setup" => servers::set_up().map(|()| ExitCode::SUCCESS),
        "demo" => demo(&rest),
        "test" => test::run(&rest),
        "bench" => bench::run(&rest),
        "hot" => hot::run(&rest),
        "features" => features::run(),
        "schema" => schema::run(&rest),
        "faults" => faults::run(&rest),
        "soak" => soak::run(&rest),
        "models" => models(&rest),
        "fuzz" => fuzz::run(&rest),
        "mutants" => mutants::run(&rest),
        "vectors" => vectors::run(&rest),
        "exits" => exits::exits(&rest),
        "sanitize" => exits::sanitize(&rest),
        "package" => release::package(&rest),
        "semver" => release::semver(&rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn demo(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    services::install(&Kind::ALL)?;
    let servers = Servers::for_demo()?;
    let mut command = cargo();
    command.args(["run", "--example", "quant_strategy", "--"]).args(arguments);
    let code = child.run(command.envs(servers.environment()))?;
    servers.stop();
    Ok(code)
}

/// Builds into a folder of its own, because the flag makes cargo build everything anew.
fn models(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    let mut command = cargo();
    command.args(["test", "--release", "--package", "models", "--lib", "--target-dir", "target/models", "--"]);
    command.args(["--nocapture"]).args(arguments).env("RUSTFLAGS", "--cfg model");
    Ok(child.run(&mut command)?)
}

/// The cargo that runs this program, so that the toolchain stays the same. It gets SIGTERM when this process dies.
fn cargo() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo has set these for this program. Build scripts that read them would run again, and with them the build of
    // all that depends on theirs.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
            command.env_remove(&*name);
        }
    }
    command
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

fn target() -> PathBuf {
    // `join` leaves an absolute path alone.
    root().join(env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from))
}
