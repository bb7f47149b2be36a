//! The options of a run, and the names that it uses on the servers.

use std::env;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, bail};

pub(crate) const USAGE: &str = "\
Usage: quant_strategy [--blocking] [--json] [--stored] [--pace BARS] [--prefix NAME [--keep]]

  --blocking     on threads instead of tasks
  --json         print the numbers as JSON
  --stored       take the bars as the stores hold them, instead of writing them first
  --pace BARS    publish so many bars per second and ticker, as a live feed would; default: as fast as confirmed
  --prefix NAME  name everything on the servers NAME_…, and remove it at the end; default: $QUANT_STRATEGY_PREFIX
  --keep         remove nothing

The servers: MONGODB_URI, AMQP_URL, CLICKHOUSE_URL, REDIS_URL; default: localhost.";

#[derive(Debug, Default, Clone)]
pub(crate) struct Plan {
    pub(crate) help: bool,
    pub(crate) blocking: bool,
    pub(crate) json: bool,
    pub(crate) stored: bool,
    pub(crate) keep: bool,
    pub(crate) pace: Option<usize>,
    prefix: String,
}

impl Plan {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut prefix = env::var("QUANT_STRATEGY_PREFIX").ok();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| anyhow::anyhow!("{argument} needs a value"));
            match argument.as_str() {
                "--help" | "-h" => plan.help = true,
                "--blocking" => plan.blocking = true,
                "--json" => plan.json = true,
                "--stored" => plan.stored = true,
                "--keep" => plan.keep = true,
                "--pace" => plan.pace = Some(value()?.parse::<NonZeroUsize>().context("--pace")?.get()),
                "--prefix" => prefix = Some(value()?),
                _ => bail!("unknown argument {argument:?}"),
            }
        }
        if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
            // The prefix becomes part of statements.
            if prefix.len() > 32 || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                bail!("the prefix may have at most 32 letters, digits and underscores");
            }
            plan.prefix = format!("{prefix}_");
        }
        Ok(plan)
    }

    /// Whether the run removes its data at the end. It does so only if the data is sure to be its own.
    pub(crate) fn removes(&self) -> bool {
        !self.prefix.is_empty() && !self.keep
    }

    /// The database in MongoDB. It is not QUANTAXIS's own, which may hold real bars.
    pub(crate) fn database(&self) -> String {
        format!("{}quant_strategy", self.prefix)
    }

    /// The table, in the ClickHouse database of the configuration.
    pub(crate) fn table(&self) -> String {
        format!("{}stock_day", self.prefix)
    }

    /// The exchange in RabbitMQ.
    pub(crate) fn exchange(&self, code: &str) -> String {
        format!("{}realtime_day_{code}", self.prefix)
    }

    /// The key in Redis.
    pub(crate) fn signal(&self, code: &str) -> String {
        format!("{}signal:{code}", self.prefix)
    }
}
