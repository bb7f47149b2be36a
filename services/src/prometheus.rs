//! A Prometheus that scrapes one address every second and evaluates alert rules as often.
//!
//! It dies with the process that started it, or as it drops, and its folder is removed with it.

use crate::address::encode;
use crate::install::{PROMETHEUS, PROMTOOL};
use crate::process::{Process, command};
use crate::{Error, folder, port, web};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A Prometheus of Debian's package, on a port of its own on loopback.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    dir: PathBuf,
    port: u16,
}

/// How long Prometheus may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl Prometheus {
    /// Starts it, and waits until it is ready. It scrapes `/metrics` at `target`, which is a host with a port, and
    /// evaluates these rules.
    ///
    /// # Errors
    /// If it is missing and cannot be installed, or does not become ready within a minute.
    pub fn start(target: &str, rules: &str) -> Result<Prometheus, Error> {
        let program = PROMETHEUS.path()?;
        let (dir, port) = (folder::create_for("prometheus")?, port::free()?);
        let config = format!(
            "global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: [rules.yml]
scrape_configs:
  - job_name: resource_pool
    static_configs:
      - targets: ['{target}']
"
        );
        for (name, text) in [("prometheus.yml", config.as_str()), ("rules.yml", rules)] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(Error::io(path.to_string_lossy()))?;
        }
        let mut prometheus = command(program, &dir);
        prometheus.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]);
        prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::spawn(prometheus, &dir.join("log"))?;
        let mut started = Prometheus { process, dir, port };
        let end = Instant::now() + PATIENCE;
        while started.get("/-/ready").is_err() {
            if !started.process.is_running() || Instant::now() > end {
                let log = fs::read_to_string(started.dir.join("log")).unwrap_or_default();
                return Err(Error::exchange("starting Prometheus", log));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// The answer of the HTTP API to this PromQL, as JSON.
    ///
    /// # Errors
    /// If Prometheus does not answer, or answers an error.
    pub fn query(&self, promql: &str) -> Result<String, Error> {
        self.get(&format!("/api/v1/query?query={}", encode(promql)))
    }

    /// The active alerts, as JSON.
    ///
    /// # Errors
    /// As [`query`](Prometheus::query).
    pub fn alerts(&self) -> Result<String, Error> {
        self.get("/api/v1/alerts")
    }

    fn get(&self, path: &str) -> Result<String, Error> {
        web::get("Prometheus", ("127.0.0.1", self.port), None, path, PATIENCE)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs `promtool` in this folder, and returns its output.
///
/// # Errors
/// If it is missing and cannot be installed, or fails. The error has its output.
pub fn promtool(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    let mut promtool = Command::new(PROMTOOL.path()?);
    let output = promtool.args(arguments).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.map_err(Error::io("running promtool"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(Error::exchange(format!("promtool {arguments:?}"), said)) }
}
