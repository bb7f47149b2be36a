//! A moving-average strategy on 12,154 real daily bars, through all four servers and back.
//!
//! MongoDB stores the bars. Each bar goes through RabbitMQ, and the strategy follows the consumed bars. Redis caches
//! the strategy's signals, and ClickHouse computes volatilities.

mod bars;
mod documents;
mod follower;
mod numbers;
mod plan;
mod progress;
mod rows;
mod strategy;
mod tasks;
mod threads;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use resource_pool::{ResourcePool, blocking};

use crate::numbers::Numbers;
use crate::plan::{Plan, USAGE};
use crate::progress::Progress;

fn main() -> ExitCode {
    let plan = match Plan::parse(env::args().skip(1)) {
        Ok(plan) if plan.help => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match demo(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(plan: Plan) -> Result<()> {
    let progress = Progress::default();
    // The report is printed however the program ends, also after Ctrl-C.
    let (json, shown) = (plan.json, progress.clone());
    ResourcePool::global().on_report(move |report| {
        shown.clear();
        if json { eprintln!("\n{report}") } else { println!("\n{report}") }
    });
    if plan.blocking {
        blocking::run(|| {
            let numbers = threads::run(&plan, &progress)?;
            let health = blocking::ResourcePool::global().health_check()?;
            print(&plan, &numbers, &health)
        })?
    } else {
        resource_pool::run(async move {
            let numbers = tasks::run(plan.clone(), progress).await?;
            let health = ResourcePool::global().health_check().await;
            print(&plan, &numbers, &health)
        })?
    }
}

fn print(plan: &Plan, numbers: &Numbers, health: &resource_pool::HealthReport) -> Result<()> {
    if plan.json {
        println!("{}", serde_json::to_string_pretty(numbers)?);
        eprintln!("{health}");
    } else {
        println!("{numbers}\n{health}");
    }
    let bars = bars::all()?.values().map(Vec::len).sum::<usize>() as u64;
    ensure!(numbers.complete(bars), "of {bars} bars, not all came through");
    Ok(())
}
