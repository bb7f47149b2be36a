//! `wait`: waits until everything that is configured is ready.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use resource_pool::ResourcePool;
use tokio::time::{sleep, timeout};

use crate::arguments::WaitArguments;
use crate::error::Problem;
use crate::table::millis;
use crate::{check, loaded, progress};

/// The pause between two attempts. It is longer than the pool answers the same error again.
const PAUSE: Duration = Duration::from_millis(600);
/// How long one attempt may take, so that a silent server is asked again once it has started.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long closing at the end may take.
const CLOSING: Duration = Duration::from_secs(2);

/// The last error of each resource that is not ready, by its name. An empty one is of a resource that has not answered.
type Pending = Mutex<BTreeMap<String, String>>;

pub(crate) async fn run(asked: &WaitArguments) -> Result<ExitCode, Problem> {
    let mut config = loaded::load(&asked.file)?;
    let names = loaded::names(&config, &asked.names)?;
    check::hurry(&mut config, ATTEMPT.min(asked.timeout));
    let pool = ResourcePool::builder().config(config).build().map_err(|error| Problem::of_config(&error))?;
    let pending: Pending = Mutex::new(names.iter().map(|name| (name.clone(), String::new())).collect());
    let started = Instant::now();
    let waiting = timeout(asked.timeout, until_ready(&pool, &pending));
    let limit = millis(asked.timeout.as_secs_f64() * 1e3);
    let is_ready = progress::during(waiting, |passed| {
        let passed = millis(passed.as_secs_f64() * 1e3);
        format!("waiting {passed} of {limit} for {}", listed(&pending))
    })
    .await
    .is_ok();
    drop(timeout(CLOSING, pool.close_all_within(CLOSING)).await);
    if is_ready {
        let took = millis(started.elapsed().as_secs_f64() * 1e3);
        crate::print(&format!("ready after {took}: {}\n", names.join(", ")))?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Problem::failed(
        format!("not ready within {limit}: {}", listed(&pending)),
        "run `resource-pool check`, which finds the usual mistakes, or raise --timeout",
    ))
}

/// Connects all until each is ready.
async fn until_ready(pool: &ResourcePool, pending: &Pending) {
    loop {
        let names: Vec<String> = lock(pending).keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        for (name, ready) in pool.warm_up(names.iter().map(String::as_str)).await {
            let mut pending = lock(pending);
            match ready {
                Ok(()) => drop(pending.remove(&name)),
                Err(error) => drop(pending.insert(name, error.to_string())),
            }
        }
        if !lock(pending).is_empty() {
            sleep(PAUSE).await;
        }
    }
}

/// The resources that are not ready, with their errors. An error begins with its resource's name.
fn listed(pending: &Pending) -> String {
    let pending = lock(pending);
    let each = pending.iter().map(|(name, error)| match error.is_empty() {
        true => name.clone(),
        false if error.starts_with(name.as_str()) => error.clone(),
        false => format!("{name}: {error}"),
    });
    each.collect::<Vec<_>>().join("; ")
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
    pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
