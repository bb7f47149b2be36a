//! `holders`: who holds leases and checkouts of a running pool, the oldest first.

use std::process::ExitCode;

use crate::arguments::AdminArguments;
use crate::client::Client;
use crate::error::Problem;
use crate::model::Held;
use crate::paint::Paint;
use crate::table::{Cell, Table, millis};

pub(crate) async fn run(asked: &AdminArguments) -> Result<ExitCode, Problem> {
    let client = Client::new(&asked.address)?;
    let answer = client.get("/holders").await?;
    let holders: Vec<Held> = client.read(answer.clone())?;
    if asked.json {
        crate::print(&format!("{answer:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["resource", "held", "how", "since line", "by"], &[1]);
    for one in &holders {
        let how = if one.exclusive { "exclusive" } else { "shared" };
        table.row(vec![
            Cell::from(one.resource.as_str()),
            Cell::from(millis(one.held_ms)),
            if one.suspected { Cell::painted(format!("{how}, a leak?"), "warn") } else { Cell::from(how) },
            Cell::from(one.site.as_str()),
            Cell::from(one.owner.as_deref().unwrap_or("-")),
        ]);
    }
    let text = if holders.is_empty() { "nobody holds anything\n".to_owned() } else { table.show(Paint::for_output()) };
    crate::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
