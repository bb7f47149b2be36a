//! The vector stores: their tests with as many vectors as they are made for, and those of Milvus, in a network of their
//! own.

use crate::cargo;
use crate::child::Child;
use services::{Kind, PgVector};
use std::error::Error;
use std::process::{Command, ExitCode};

/// How many vectors each store gets.
const SIZE: &str = "100000";

/// Sets up a network that has a loopback alone, and runs a command in it.
const ALONE: &str = r#"ip link set lo up && exec "$@""#;

/// Runs the tests of the stores. A network namespace takes root.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    // Nothing can be fetched from within the namespace.
    services::install(&[Kind::Chroma, Kind::Milvus, Kind::Postgres])?;
    PgVector::install()?;
    let tests = ["test", "--no-default-features", "--features", "chroma,milvus,postgres"];
    let tests = tests.into_iter().chain(["--test", "chroma", "--test", "pgvector", "--test", "milvus"]);
    let built = child.run(cargo().args(tests.clone()).arg("--no-run"))?;
    if built != ExitCode::SUCCESS {
        return Ok(built);
    }
    let cargo = cargo();
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", ALONE, "sh"]).arg(cargo.get_program()).args(cargo.get_args());
    command.args(tests).args(["--no-fail-fast", "--", "--nocapture", "--test-threads", "1"]).args(arguments);
    command.env("RESOURCE_POOL_TEST_VECTORS", SIZE).env("RESOURCE_POOL_TEST_MILVUS", "1");
    Ok(child.run(&mut command)?)
}
