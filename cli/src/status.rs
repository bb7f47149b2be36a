//! `status`: the resources of a running pool.

use std::process::ExitCode;

use crate::arguments::AdminArguments;
use crate::client::Client;
use crate::error::Problem;
use crate::model::Page;
use crate::paint::Paint;
use crate::table::{Cell, Table, millis};

pub(crate) async fn run(asked: &AdminArguments) -> Result<ExitCode, Problem> {
    let client = Client::new(&asked.address)?;
    let answer = client.get("/status").await?;
    let page: Page = client.read(answer.clone())?;
    let text = if asked.json { format!("{answer:#}\n") } else { show(&page, Paint::for_output()) };
    crate::print(&text)?;
    let is_ready = matches!(&*page.readiness, "pass" | "warn" | "unknown");
    Ok(if is_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(page: &Page, paint: Paint) -> String {
    let head = [
        "resource", "state", "since", "health", "latency", "leases", "out", "in use", "idle", "max", "waiting",
        "endpoint",
    ];
    let mut table = Table::new(&head, &[2, 4, 5, 6, 7, 8, 9, 10]);
    let count = |count: Option<u64>| Cell::from(count.map_or_else(|| "-".to_owned(), |count| count.to_string()));
    for one in &page.status.resources {
        let verdict = page.verdict(&one.name);
        let latency = verdict.and_then(|verdict| verdict.latency_ms);
        table.row(vec![
            Cell::from(one.name.as_str()),
            Cell::state(&one.state),
            Cell::from(millis(one.since_ms)),
            Cell::state(verdict.map_or("-", |verdict| &verdict.health)),
            Cell::from(latency.map_or_else(|| "-".to_owned(), millis)),
            Cell::from(one.leases.to_string()),
            Cell::from(one.checkouts.to_string()),
            count(one.usage.in_use),
            count(one.usage.idle),
            count(one.usage.max),
            Cell::from((one.usage.waiting.unwrap_or(0) + one.connecting).to_string()),
            Cell::from(one.endpoint.as_str()),
        ]);
        match (&one.error, verdict.and_then(|verdict| verdict.message.as_ref())) {
            (Some(error), _) => table.note(&error.message),
            (None, Some(message)) => table.note(message),
            (None, None) => {}
        }
        if one.leaks > 0 {
            table.note(&format!("{} suspected leaks: see `resource-pool holders`", one.leaks));
        }
    }
    let closing = if page.closing { ", closing" } else { "" };
    format!(
        "{}readiness: {}{closing}\n",
        table.show(paint),
        paint.state(&page.readiness, &crate::table::clean(&page.readiness))
    )
}
