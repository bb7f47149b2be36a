//! `config`: the effective configuration, with the place that set each value.

use std::process::ExitCode;

use resource_pool::config::{Config, Options, Origin};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::ConfigArguments;
use crate::error::Problem;
use crate::loaded;
use crate::paint::Paint;
use crate::table::{Cell, Table};

/// One value.
#[derive(Debug, Serialize)]
struct Entry {
    key: String,
    value: Value,
    set_by: Origin,
}

pub(crate) fn run(asked: &ConfigArguments) -> Result<ExitCode, Problem> {
    let config = loaded::load(&asked.file)?;
    let mut entries = Vec::new();
    if asked.names.is_empty() {
        flatten(&config, "pool", options(&config.pool), &mut entries);
        for name in config.configured() {
            resource(&config, name, &mut entries);
        }
    } else {
        for name in loaded::names(&config, &asked.names)? {
            resource(&config, &name, &mut entries);
        }
    }
    if asked.changed {
        entries.retain(|entry| entry.set_by != Origin::Default);
    }
    if asked.json {
        crate::print(&format!("{:#}\n", serde_json::json!({ "values": entries })))?;
    } else {
        let mut table = Table::new(&["key", "value", "set by"], &[]);
        for Entry { key, value, set_by } in &entries {
            let by = match set_by {
                Origin::Default => Cell::painted("default", "idle"),
                origin => Cell::from(origin.to_string()),
            };
            table.row(vec![Cell::from(key.as_str()), Cell::from(shown(value)), by]);
        }
        crate::print(&table.show(Paint::for_output()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(options: &Options) -> Value {
    serde_json::to_value(options).unwrap_or_default()
}

/// Adds the values of one resource. A URL that is taken apart has no value of its own. Where a URI is kept whole, the
/// parts that it names say nothing, so they are left out.
fn resource(config: &Config, name: &str, entries: &mut Vec<Entry>) {
    let Some(Value::Object(mut fields)) = loaded::fields(config, name) else { return };
    if fields.get("url").is_some_and(Value::is_null) {
        fields.remove("url");
    }
    if fields.get("uri").is_some_and(|uri| !uri.is_null()) {
        let by_uri = config.origin(&format!("{name}.uri"));
        for part in ["host", "port", "user", "password", "database"] {
            let origin = config.origin(&format!("{name}.{part}"));
            if origin == by_uri || (origin == Origin::Default && ["host", "port"].contains(&part)) {
                fields.remove(part);
            }
        }
    }
    flatten(config, name, Value::Object(fields), entries);
}

/// Adds the values of a table and of the tables in it.
fn flatten(config: &Config, key: &str, value: Value, entries: &mut Vec<Entry>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                flatten(config, &format!("{key}.{field}"), value, entries);
            }
        }
        value => entries.push(Entry { key: key.to_owned(), value, set_by: config.origin(key) }),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
