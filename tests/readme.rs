//! README's programs compile in a crate that has this one alone.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::Command;

/// The control is an import that README must not need: a driver by its own name.
#[test]
fn readme_programs_need_this_crate_alone() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh");
    let programs: Vec<&str> = include_str!("../README.md")
        .split("```rust,no_run\n")
        .skip(1)
        .filter_map(|text| text.split("```").next())
        .collect();
    assert_eq!(programs.len(), 2);
    fs::create_dir_all(fresh.join("src/bin")).unwrap();
    for (name, program) in ["threads", "tasks"].into_iter().zip(&programs) {
        fs::write(fresh.join(format!("src/bin/{name}.rs")), program).unwrap();
    }
    fs::write(fresh.join("src/bin/control.rs"), "use redis as _;\nfn main() {}\n").unwrap();
    let manifest = format!(
        "[package]\nname = 'fresh'\nedition = '2024'\n\n[dependencies]\nresource-pool = {{ path = {here:?} }}\n\n\
         [profile.dev]\ndebug = 'line-tables-only'\n\n[profile.dev.package.'*']\ndebug = false\n\n[workspace]\n"
    );
    fs::write(fresh.join("Cargo.toml"), manifest).unwrap();
    fs::copy(here.join("Cargo.lock"), fresh.join("Cargo.lock")).unwrap();
    let check = |name: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["check", "--offline", "--quiet", "--bin", name]).current_dir(&fresh);
        // What is compiled already serves again, where the features are the same.
        cargo.arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder"));
        let output = cargo.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // What README says of a derive.
    let row =
        "use resource_pool::clickhouse;\n#[derive(clickhouse::Row)]\nstruct Bar {\n    _close: f64,\n}\nfn main() {}\n";
    fs::write(fresh.join("src/bin/row.rs"), row).unwrap();
    for name in ["threads", "tasks", "row"] {
        let (compiles, errors) = check(name);
        assert!(compiles, "{name}: {errors}");
    }
    let (compiles, errors) = check("control");
    assert!(!compiles && errors.contains("redis"), "{errors}");
}
