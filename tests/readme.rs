//! Checks README: its programs compile in a crate that depends on this one alone, and its facts are the present ones.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The control is an import that README must not need: a driver by its own name.
#[test]
fn readme_programs_need_this_crate_alone() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh");
    let programs: Vec<&str> =
        README.split("```rust,no_run\n").skip(1).filter_map(|text| text.split("```").next()).collect();
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
        // The dependencies that are already compiled are used again if their features are the same.
        cargo.arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder"));
        // Cargo has set these for this test. Build scripts that read them would run again in the shared folder.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
                cargo.env_remove(&*name);
            }
        }
        let output = cargo.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // README says that a derive compiles.
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

/// The levels of a page's headings, and its code blocks, in their order.
fn shape(page: &str) -> (Vec<usize>, Vec<String>) {
    let (mut levels, mut blocks) = (Vec::new(), Vec::new());
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (&mut block, line.starts_with("```")) {
            (Some(_), true) => blocks.extend(block.take()),
            (Some(block), false) => *block += &format!("{line}\n"),
            (None, true) => block = Some(format!("{line}\n")),
            (None, false) if line.starts_with('#') => levels.push(line.chars().take_while(|c| *c == '#').count()),
            (None, false) => {}
        }
    }
    (levels, blocks)
}

/// The pages in Chinese have the headings and the code of the English ones.
#[test]
fn chinese_pages_follow_the_english_ones() {
    let guide = include_str!("../RESOURCE_MANAGER.md");
    let (first_page, _) = guide.split_once("\n## Managers").unwrap();
    for (english, chinese) in
        [(README, include_str!("../README.zh-CN.md")), (first_page, include_str!("../docs/first-page.zh-CN.md"))]
    {
        let (english, chinese) = (shape(english), shape(chinese));
        assert!(english.0.len() > 1 && english.1.len() > 2, "{english:?}");
        assert_eq!(english, chinese);
    }
}

/// The versions in the table are those of the manifest.
#[test]
fn readme_has_the_present_versions_of_the_drivers() {
    let manifest = include_str!("../Cargo.toml");
    for driver in ["mongodb", "lapin", "clickhouse", "redis", "sqlx"] {
        let row = README.lines().find(|line| line.starts_with(&format!("| `{driver}` |"))).unwrap();
        let told = row.split('|').nth(2).unwrap().trim();
        let start = format!("{driver} = {{ version = \"");
        let present = manifest.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        assert!(present.starts_with(told), "{driver}: {told}, {present}");
    }
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(README.contains(&format!("Rust {rust} or later")), "{rust}");
}

/// The report in README has the columns of a real one.
#[test]
fn readme_shows_a_report_as_it_is_printed() {
    let pool = resource_pool::blocking::ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    pool.on_close("hook", resource_pool::Phase::Files, || Ok(())).unwrap();
    let report = pool.close_all().unwrap().to_string();
    let head = report.lines().nth(1).unwrap();
    assert!(head.contains("outcome") && README.contains(head), "{report}");
}
