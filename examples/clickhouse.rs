//! ClickHouse on threads: a bulk insert, values bound instead of pasted into the statement, and rows as structs.

use anyhow::Result;
use clickhouse::Row;
use resource_pool::blocking::{ClickHouse, ResourcePool};
use serde::{Deserialize, Serialize};

/// A row of QUANTAXIS's `stock_cn_day`.
#[derive(Debug, Row, Serialize, Deserialize)]
struct Bar {
    /// Days since 1970.
    date: u16,
    order_book_id: String,
    close: f32,
    volume: f32,
}

fn main() -> Result<()> {
    let clickhouse = ResourcePool::global().clickhouse()?;
    let version: Vec<String> = clickhouse.query_rows("SELECT version()")?;
    println!("ClickHouse {}", version.concat());

    let table = format!("stock_cn_day_example_{}", std::process::id());
    let done = insert_and_select(&clickhouse, &table);
    clickhouse.execute(&format!("DROP TABLE IF EXISTS {table}"))?;
    done
}

fn insert_and_select(clickhouse: &ClickHouse, table: &str) -> Result<()> {
    clickhouse.execute(&format!(
        "CREATE TABLE {table} (date Date, order_book_id String, close Float32, volume Float32)
         ENGINE = ReplacingMergeTree PARTITION BY toYear(date) ORDER BY (order_book_id, date)"
    ))?;
    let bars = (0..1000).map(|day| Bar {
        date: 19_000 + day,
        order_book_id: if day % 2 == 0 { "000001.XSHE" } else { "600000.XSHG" }.to_owned(),
        close: 10.0 + f32::from(day) / 100.0,
        volume: 1e6,
    });
    println!("{} rows inserted", clickhouse.insert_rows(table, bars)?);

    let select = format!("SELECT ?fields FROM {table} WHERE order_book_id = ? ORDER BY date DESC LIMIT ?");
    let last: Vec<Bar> = clickhouse.query_rows(clickhouse.client().query(&select).bind("000001.XSHE").bind(3))?;
    for bar in last {
        println!("{bar:?}");
    }
    Ok(())
}
