//! Checks that the guide and its reference tell the options, names and defaults of the code, and that their links lead
//! somewhere.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use resource_pool::config::{
    ClickHouseConfig, CloseOptions, HealthOptions, LeakOptions, MongoConfig, Options, ProbeOptions, RabbitMqConfig,
    RedisConfig, Retry, TlsOptions,
};

const GUIDE: &str = include_str!("../RESOURCE_MANAGER.md");
const OPTIONS: &str = include_str!("../docs/reference/options.md");
const REPEATS: &str = include_str!("../docs/reference/repeats.md");
const EVENTS: &str = include_str!("../docs/reference/events.md");
const FAULTS: &str = include_str!("../docs/reference/faults.md");

/// The guide's limit. Nobody reads a longer guide.
const MOST_WORDS: usize = 4_600;

/// The fields of a value, and each field's `Debug` text on one line.
fn fields(value: &dyn Debug) -> BTreeMap<String, String> {
    let text = format!("{value:#?}");
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        if let Some((field, value)) = line
            .strip_prefix("    ")
            .filter(|line| !line.starts_with([' ', '}', ']']))
            .and_then(|line| line.split_once(": "))
        {
            let value = value.trim_end_matches(',').trim_end_matches(" {");
            fields.insert(field.to_owned(), value.to_owned());
        }
    }
    fields
}

/// The cells of the rows of the first table in this text.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows =
        text.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The texts between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table under this heading: each field with its default.
fn table(name: &str) -> BTreeMap<String, String> {
    let (_, section) = OPTIONS.split_once(&format!("#### `{name}`")).unwrap_or_else(|| panic!("no section on {name}"));
    let cell = |text: &str| text.trim_matches('`').to_owned();
    rows(section).iter().map(|row| (cell(row[0]), cell(row[2]))).collect()
}

#[test]
fn guide_tables_have_every_option_and_its_default() {
    let options = Options::default();
    let all = [
        #[cfg(feature = "postgres")]
        ("PostgresConfig", &resource_pool::config::PostgresConfig::default() as &dyn Debug),
        #[cfg(feature = "mysql")]
        ("MySqlConfig", &resource_pool::config::MySqlConfig::default() as &dyn Debug),
        #[cfg(feature = "sqlite")]
        ("SqliteConfig", &resource_pool::config::SqliteConfig::default() as &dyn Debug),
        #[cfg(feature = "elastic")]
        ("ElasticConfig", &resource_pool::config::ElasticConfig::default()),
        #[cfg(feature = "http")]
        ("HttpConfig", &resource_pool::config::HttpConfig::default()),
        #[cfg(feature = "llm")]
        ("LlmConfig", &resource_pool::config::LlmConfig::default()),
        #[cfg(feature = "chroma")]
        ("ChromaConfig", &resource_pool::config::ChromaConfig::default()),
        #[cfg(feature = "milvus")]
        ("MilvusConfig", &resource_pool::config::MilvusConfig::default()),
        ("Options", &options as &dyn Debug),
        ("Retry", &Retry::default()),
        ("ProbeOptions", &ProbeOptions::default()),
        ("HealthOptions", &HealthOptions::default()),
        ("LeakOptions", &LeakOptions::default()),
        ("CloseOptions", &CloseOptions::default()),
        ("MongoConfig", &MongoConfig::default()),
        ("RabbitMqConfig", &RabbitMqConfig::default()),
        ("ClickHouseConfig", &ClickHouseConfig::default()),
        ("RedisConfig", &RedisConfig::default()),
        ("TlsOptions", &TlsOptions::default()),
    ];
    let mut wrong = Vec::new();
    for (name, value) in all {
        let (code, guide) = (fields(value), table(name));
        for field in code.keys().chain(guide.keys()).collect::<BTreeSet<_>>() {
            if code.get(field) != guide.get(field) {
                wrong.push(format!("{name}.{field}: code {:?}, guide {:?}", code.get(field), guide.get(field)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn guide_has_every_environment_name() {
    let kinds = [
        include_str!("../src/kinds/mongo/config.rs"),
        include_str!("../src/kinds/rabbitmq/config.rs"),
        include_str!("../src/kinds/clickhouse/config.rs"),
        include_str!("../src/kinds/redis/config.rs"),
        include_str!("../src/kinds/postgres/config.rs"),
        include_str!("../src/kinds/mysql/config.rs"),
        include_str!("../src/kinds/sqlite/config.rs"),
        include_str!("../src/kinds/elastic/config.rs"),
        include_str!("../src/kinds/http/config.rs"),
        include_str!("../src/kinds/llm/config.rs"),
        include_str!("../src/kinds/chroma/config.rs"),
        include_str!("../src/kinds/milvus/config.rs"),
    ];
    let is_name = |text: &&str| {
        text.len() > 5
            && text.contains(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let mut read = BTreeSet::from(["RESOURCE_POOL_CONFIG", "DB_KIND"]);
    let of_kinds = kinds.map(|source| {
        let (_, names) = source.split_once("const NAMES: Names = Names {").expect("its names");
        names.split("\n    };").next().expect("their end")
    });
    let (_, of_pool) = include_str!("../src/lifecycle/options.rs")
        .split_once("fn apply(&mut self, environment: &Environment, ")
        .unwrap();
    // The password's file has a variable for each one of the password.
    let of_password = |names: &'static str, field: &str| {
        let (_, variables) = names.split_once(&format!("(\"{field}\", "))?;
        variables.split(')').next()
    };
    let secrets = ["password", "api_key", "token"];
    let of_passwords = of_kinds.iter().flat_map(|names| secrets.iter().filter_map(|field| of_password(names, field)));
    let files: Vec<_> =
        of_passwords.flat_map(|field| field.split('"').filter(is_name).map(|name| format!("{name}_FILE"))).collect();
    for names in of_kinds.into_iter().chain(of_pool.split("Ok(())").next()) {
        read.extend(names.split('"').skip(1).step_by(2).filter(is_name));
    }
    read.extend(files.iter().map(String::as_str));
    for (_, more) in kinds.iter().filter_map(|source| source.split_once("const MORE: &[Field] = &[")) {
        read.extend(more.split(";\n").next().unwrap().split('"').skip(1).step_by(2).filter(is_name));
    }
    let (_, section) = OPTIONS.split_once("## Environment").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let told: BTreeSet<_> = quoted(section).filter(is_name).collect();
    assert_eq!(read, told);
    assert!(read.len() > 25, "{read:?}");
}

/// Every row on repeats names existing tests, and every test on repeats is in a row.
#[test]
fn guide_table_of_repeats_is_proved() {
    let table = rows(REPEATS);
    let named: BTreeSet<_> = table.iter().flat_map(|row| quoted(row[row.len() - 1])).collect();
    let tests = include_str!("repeats.rs").lines().filter_map(|line| line.strip_prefix("async fn "));
    let tests = tests.filter(|test| test.starts_with("repeats_")).filter_map(|test| test.split_once("()"));
    let tests: BTreeSet<_> = tests.map(|(name, _)| name).collect();
    assert_eq!(named, tests);
    assert!(named.len() >= 5 && table.iter().all(|row| quoted(row[row.len() - 1]).count() > 0), "{table:?}");
}

#[test]
fn guide_has_every_event() {
    let (_, code) = include_str!("../src/lifecycle/event.rs").split_once("pub enum What {").unwrap();
    let (code, _) = code.split_once("\n}\n").unwrap();
    let is_variant = |line: &&str| line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase();
    let known: BTreeSet<&str> =
        code.lines().filter(is_variant).filter_map(|line| line.trim().split([' ', ',']).next()).collect();
    let (_, section) = EVENTS.split_once("## Events").unwrap();
    let told: BTreeSet<&str> = rows(section).iter().map(|row| row[0].trim_matches('`')).collect();
    assert!(known.len() > 10, "{known:?}");
    assert_eq!(told, known);
}

/// The page has the tables of the last full run of `cargo xtask faults`. They have every server, and show no loss and
/// no cut of a server that answers.
#[test]
fn guide_table_of_faults_is_full_and_clean() {
    let (_, written) = FAULTS.split_once("<!-- written by `cargo xtask faults` -->").unwrap();
    let (written, _) = written.split_once("<!-- end -->").unwrap();
    let (faults, servers) = written.trim().split_once("\n\n").expect("two tables");
    let column = |name: &str| {
        faults.lines().next().and_then(|head| head.trim_matches('|').split(" | ").position(|cell| cell.trim() == name))
    };
    let cut = column("cut by us").expect("its column");
    let (faults, servers) = (rows(faults), rows(servers));
    assert!(faults.len() >= 30, "{} faults", faults.len());
    for kind in ["MongoDB", "RabbitMQ", "ClickHouse", "Redis", "PostgreSQL"] {
        assert!(faults.iter().filter(|row| row[0] == kind).count() >= 7, "{kind}: {faults:?}");
        let server = servers.iter().find(|row| row[0].starts_with(kind)).unwrap_or_else(|| panic!("no {kind}"));
        let (acknowledged, lost, untold) = (server[1], server[3], server[4]);
        assert!(acknowledged != "0" && lost == "0" && untold == "0", "{server:?}");
    }
    for fault in
        ["server full", "right taken", "loading", "disk full", "descriptors gone", "failover, and", "failover, forced"]
    {
        let mut uncut = faults.iter().filter(|row| row[1].starts_with(fault)).map(|row| row[cut] == "0").peekable();
        assert!(uncut.peek().is_some() && uncut.all(|uncut| uncut), "{fault}: {faults:?}");
    }
}

#[test]
fn guide_is_short_enough_to_be_read() {
    let words = GUIDE.split_whitespace().count();
    assert!(words <= MOST_WORDS, "{words} words");
}

/// The guide's table of the options that programs change most has the present defaults.
#[test]
fn guide_has_the_present_defaults_of_the_options_that_are_changed_most() {
    let (_, section) = GUIDE.split_once("The options that programs change most:").unwrap();
    let told: BTreeMap<&str, &str> = rows(section).into_iter().map(|row| (row[0], row[1])).collect();
    let options = Options::default();
    let seconds = |duration: std::time::Duration| format!("{} s", duration.as_secs_f64());
    let repeat = format!("`{}`", format!("{:?}", options.repeat).to_lowercase());
    #[cfg(feature = "postgres")]
    let postgres = resource_pool::config::PostgresConfig::default().pool_size;
    // A build without PostgreSQL cannot read its default.
    #[cfg(not(feature = "postgres"))]
    let postgres = 5;
    let has = [
        ("`acquire_timeout`", seconds(options.acquire_timeout)),
        ("`close.deadline`", seconds(options.close.deadline)),
        ("`close.drain`", seconds(options.close.drain)),
        ("`probe.strikes`, `probe.limit`", format!("{}, {}", options.probe.strikes, seconds(options.probe.limit))),
        ("`repeat`", repeat),
        ("`pool_size` of Redis and the SQL kinds", format!("{} and {postgres}", RedisConfig::default().pool_size)),
        ("`leaks.age`", seconds(options.leaks.age)),
    ];
    assert_eq!(told, has.iter().map(|(name, default)| (*name, default.as_str())).collect());
}

/// Every page that no tool writes, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/reference", "benches", "tests"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let pages: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "md"))
        .map(|file| (file.clone(), fs::read_to_string(file).unwrap()))
        .collect();
    assert!(pages.len() > 15, "{}", pages.len());
    pages
}

/// The anchors of a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
    headings.map(|heading| heading.to_lowercase().replace(|c| !kept(c), "").replace(' ', "-")).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for (page, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let leads = target.exists()
                && anchor.is_none_or(|anchor| anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !leads {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}
