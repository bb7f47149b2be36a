//! `cargo xtask schema`: the JSON schema of the configuration, and the sample with every key.
//!
//! The test `schema` makes both of the types and of the reference, and compares them with the files in `docs`.

use std::error::Error;
use std::process::ExitCode;

use crate::cargo;
use crate::child::Child;

/// Tells the test to write the files instead of comparing them.
const WRITE: &str = "RESOURCE_POOL_TEST_WRITE_SCHEMA";

/// Writes the files. With `--check` it only compares them, and fails if one is out of date.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    let mut command = cargo();
    command.args([
        "test",
        "--quiet",
        "--package",
        "resource-pool",
        "--features",
        "tls,serde,postgres,mysql,sqlite,llm,chroma,milvus,elastic",
        "--test",
        "schema",
    ]);
    match arguments {
        [] => drop(command.args(["--", "schema_and_sample_are_up_to_date"]).env(WRITE, "yes")),
        [check] if check == "--check" => drop(command.env_remove(WRITE)),
        _ => return Err("schema takes no argument but --check".into()),
    }
    Ok(child.run(&mut command)?)
}
