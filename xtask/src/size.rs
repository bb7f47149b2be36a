//! `cargo xtask bench size`: how much larger the pool makes a program, and how long it takes to compile.
//!
//! Each feature has two small programs, one with the pool and one with the bare driver. Both are compiled for release
//! with the versions of our `Cargo.lock`. Each has a target folder of its own, so it compiles all that it needs. That
//! takes half an hour. A feature that is no backend is measured with Redis.

use crate::child::Child;
use crate::{cargo, root, target};
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The part's name. The part runs only if the user asks for it.
pub(crate) const NAME: &str = "size";
const TITLE: &str = "Size and compile time";
/// The part's place in the table, behind all others.
const PLACE: usize = 1000;

/// A feature, and the statements of a program that uses the pool, or the driver.
struct Feature {
    name: &'static str,
    ours: &'static str,
    /// The statements of the program that uses the driver.
    theirs: &'static str,
}

const FEATURES: [Feature; 4] = [
    Feature {
        name: "redis",
        ours: r#"let mut redis = pool.redis().unwrap();
    println!("{}", resource_pool::redis::cmd("GET").arg("key").query::<String>(&mut redis).unwrap());"#,
        theirs: r#"let mut redis = redis::Client::open("redis://localhost").unwrap().get_connection().unwrap();
    println!("{}", redis::cmd("GET").arg("key").query::<String>(&mut redis).unwrap());"#,
    },
    Feature {
        name: "clickhouse",
        ours: r#"pool.clickhouse().unwrap().execute("SELECT 1").unwrap();"#,
        theirs: r#"let runtime = tokio::runtime::Runtime::new().unwrap();
    let clickhouse = clickhouse::Client::default().with_url("http://localhost:8123");
    runtime.block_on(clickhouse.query("SELECT 1").execute()).unwrap();"#,
    },
    Feature {
        name: "rabbitmq",
        ours: r#"let message = resource_pool::rabbitmq::Message::new("", "queue", "message");
    println!("{:?}", pool.rabbitmq().unwrap().publish(message).unwrap());"#,
        theirs: r#"let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connection = lapin::Connection::connect("amqp://localhost", Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        let sent = channel.basic_publish("".into(), "queue".into(), Default::default(), b"message", Default::default());
        println!("{:?}", sent.await.unwrap().await.unwrap());
        connection.close(200, "OK".into()).await.unwrap();
    });"#,
    },
    Feature {
        name: "mongodb",
        ours: r#"use resource_pool::mongodb::bson::{Document, doc};
    let found = pool.mongo().unwrap().database("db").collection::<Document>("c").find_one(doc! {}).run();
    println!("{:?}", found.unwrap());"#,
        theirs: r#"use mongodb::bson::{Document, doc};
    let mongo = mongodb::sync::Client::with_uri_str("mongodb://localhost").unwrap();
    let found = mongo.database("db").collection::<Document>("c").find_one(doc! {}).run();
    println!("{:?}", found.unwrap());"#,
    },
];

/// A feature that is no backend, and the statements that use it, if a statement does.
struct Beside {
    name: &'static str,
    uses: &'static str,
}

const BESIDE: [Beside; 6] = [
    Beside { name: "tls", uses: "" },
    Beside { name: "serde", uses: "" },
    Beside { name: "tower", uses: "drop(resource_pool::tower::Probes::new(resource_pool::ResourcePool::global()));" },
    Beside { name: "systemd", uses: "" },
    Beside {
        name: "metrics",
        uses: "resource_pool::metrics::Metrics::install(resource_pool::ResourcePool::global()).unwrap().observe();",
    },
    Beside {
        name: "admin",
        uses: r#"use resource_pool::admin::{ADDRESS, Admin};
    println!("{}", Admin::new(resource_pool::ResourcePool::global()).listen(ADDRESS).unwrap());"#,
    },
];

impl Feature {
    /// The driver's crate.
    fn driver(&self) -> &'static str {
        if self.name == "rabbitmq" { "lapin" } else { self.name }
    }
}

/// A program to compile.
struct Program {
    name: String,
    dependencies: Vec<String>,
    main: String,
}

/// The measurements of one compiled program.
struct Compiled {
    name: String,
    /// The size in MiB, as cargo leaves it, and stripped.
    size: f64,
    stripped: f64,
    /// The time in seconds: with all dependencies, and for our crate alone. `None` for a program without our crate.
    tree: f64,
    own: Option<f64>,
}

/// Writes the part's rows into this folder.
pub(crate) fn run(child: &Child, folder: &Path) -> Result<(), Box<dyn Error>> {
    let compiled = programs()?.into_iter().map(|program| program.compile(child)).collect::<Result<Vec<_>, _>>()?;
    let all = |of: fn(&Compiled) -> Option<f64>| -> Vec<_> {
        compiled.iter().filter_map(|one| Some((&*one.name, of(one)?))).collect()
    };
    let what = "a small release program";
    let rows = [
        row("size_binary", format!("the size of {what}, as cargo leaves it"), "MiB", all(|one| Some(one.size))),
        row("size_stripped", format!("the size of {what}, stripped"), "MiB", all(|one| Some(one.stripped))),
        row("size_tree", format!("compiling {what} with all that it needs"), "s", all(|one| Some(one.tree))),
        row("size_crate", "compiling this crate alone, for release".to_owned(), "s", all(|one| one.own)),
    ];
    let head = json!({ "name": NAME, "title": TITLE, "place": PLACE, "servers": {} });
    let lines = [head].iter().chain(&rows).map(|line| format!("{line}\n")).collect::<String>();
    fs::create_dir_all(folder)?;
    Ok(fs::write(folder.join(format!("{NAME}.jsonl")), lines)?)
}

/// A row in the format of the duels.
fn row(id: &str, what: String, unit: &str, figures: Vec<(&str, f64)>) -> Value {
    let measured = |(name, figure): &(&str, f64)| json!({ "name": name, "samples": [figure], "median": figure });
    let contestants: Vec<_> = figures.iter().map(measured).collect();
    json!({ "id": id, "what": what, "unit": unit, "rounds": 1, "contestants": contestants, "claims": [], "note": null })
}

fn programs() -> Result<Vec<Program>, Box<dyn Error>> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let (_, ours) = manifest.split_once("\n[dependencies]\n").ok_or("no dependencies")?;
    // The versions and features of our own manifest.
    let dependency = |name: &str| -> Result<String, Box<dyn Error>> {
        let line = ours.lines().find(|line| line.starts_with(&format!("{name} = ")));
        Ok(line.ok_or_else(|| format!("no dependency {name}"))?.replace(", optional = true", ""))
    };
    let pool = |features: &[&str]| {
        let path = root();
        vec![format!("resource-pool = {{ path = {path:?}, default-features = false, features = {features:?} }}")]
    };
    let ours = |body: &str| format!("let pool = resource_pool::blocking::ResourcePool::global();\n    {body}");
    let mut programs = vec![
        Program { name: "nothing".to_owned(), dependencies: Vec::new(), main: r#"println!("nothing");"#.to_owned() },
        Program {
            name: "resource_pool, no feature".to_owned(),
            dependencies: pool(&[]),
            main: ours(r#"println!("{}", pool.close_all().unwrap());"#),
        },
    ];
    for feature in &FEATURES {
        programs.push(Program {
            name: feature.driver().to_owned(),
            dependencies: vec![dependency(feature.driver())?, dependency("tokio")?],
            main: feature.theirs.to_owned(),
        });
        programs.push(Program {
            name: format!("resource_pool, {}", feature.name),
            dependencies: pool(&[feature.name]),
            main: ours(feature.ours),
        });
    }
    let [redis, ..] = &FEATURES;
    for Beside { name, uses } in BESIDE {
        programs.push(Program {
            name: format!("resource_pool, {} and {name}", redis.name),
            dependencies: pool(&[redis.name, name]),
            main: ours(&format!("{uses}\n    {}", redis.ours)),
        });
    }
    let blocks = |of: fn(&Feature) -> &'static str| {
        FEATURES.iter().map(|feature| format!("{{\n    {}\n    }}\n    ", of(feature))).collect::<String>()
    };
    let mut drivers = FEATURES.iter().map(|feature| dependency(feature.driver())).collect::<Result<Vec<_>, _>>()?;
    drivers.push(dependency("tokio")?);
    programs.push(Program {
        name: "the four drivers".to_owned(),
        dependencies: drivers,
        main: blocks(|feature| feature.theirs),
    });
    programs.push(Program {
        name: "resource_pool, all four".to_owned(),
        dependencies: pool(&FEATURES.map(|feature| feature.name)),
        main: ours(&blocks(|feature| feature.ours)),
    });
    Ok(programs)
}

impl Program {
    fn compile(self, child: &Child) -> Result<Compiled, Box<dyn Error>> {
        let folder = target().join(NAME);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join("src"))?;
        // An empty `[workspace]` makes the program a workspace of its own, though its folder lies in ours.
        let head = "[package]\nname = \"program\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n";
        fs::write(folder.join("Cargo.toml"), format!("{head}{}\n", self.dependencies.join("\n")))?;
        fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
        fs::write(folder.join("src/main.rs"), format!("fn main() {{\n    {}\n}}\n", self.main))?;
        let run = |arguments: &[&str]| -> Result<f64, Box<dyn Error>> {
            let started = Instant::now();
            let code = child.run(cargo().args(arguments).current_dir(&folder).env("CARGO_TARGET_DIR", "target"))?;
            if code == ExitCode::SUCCESS {
                Ok(started.elapsed().as_secs_f64())
            } else {
                Err(format!("{}: cargo {} failed", self.name, arguments.join(" ")).into())
            }
        };
        println!("== {}", self.name);
        run(&["fetch", "--quiet"])?;
        let tree = run(&["build", "--release", "--quiet"])?;
        let own = if self.main.contains("resource_pool") {
            run(&["clean", "--release", "--quiet", "--package", "resource-pool"])?;
            Some(run(&["build", "--release", "--quiet", "--package", "resource-pool"])?)
        } else {
            None
        };
        let binary = folder.join("target/release/program");
        let (size, stripped) = (mebibytes(&binary)?, mebibytes(&strip(&binary)?)?);
        fs::remove_dir_all(&folder)?;
        Ok(Compiled { name: self.name, size, stripped, tree, own })
    }
}

fn mebibytes(file: &Path) -> Result<f64, Box<dyn Error>> {
    Ok(fs::metadata(file)?.len() as f64 / 1024.0 / 1024.0)
}

fn strip(binary: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let stripped = binary.with_extension("stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(binary).status()?;
    if status.success() { Ok(stripped) } else { Err(format!("strip: {status}").into()) }
}
