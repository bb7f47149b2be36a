//! Bars as ClickHouse keeps them. The statements run on servers of 2018 and of today.

use std::collections::BTreeMap;

use anyhow::Result;
use clickhouse::Row;
use serde::{Deserialize, Serialize};

use crate::bars::{Bar, days_since_1970};

/// A row of `stock_day`.
#[derive(Debug, Row, Serialize, Deserialize)]
pub(crate) struct DayRow {
    code: String,
    /// Days since 1970.
    date: u16,
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    adj_close: f64,
    vol: f64,
    amount: f64,
}

impl TryFrom<&Bar> for DayRow {
    type Error = anyhow::Error;

    fn try_from(bar: &Bar) -> Result<Self> {
        Ok(DayRow {
            code: bar.code.clone(),
            date: days_since_1970(&bar.date)?.try_into()?,
            open: bar.open,
            high: bar.high,
            low: bar.low,
            close: bar.close,
            adj_close: bar.adj_close,
            vol: bar.vol,
            amount: bar.amount,
        })
    }
}

/// The statement that creates the table. Of two rows with one key the later one stays, so writing all rows again
/// changes nothing.
pub(crate) fn create(table: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (code String, date Date, open Float64, high Float64, low Float64, \
         close Float64, adj_close Float64, vol Float64, amount Float64) \
         ENGINE = ReplacingMergeTree PARTITION BY toYear(date) ORDER BY (code, date)"
    )
}

pub(crate) fn remove(table: &str) -> String {
    format!("DROP TABLE IF EXISTS {table}")
}

/// The statement that counts the rows. It has `FINAL`, since the earlier row of a key disappears only when parts are
/// merged.
pub(crate) fn count(table: &str) -> String {
    format!("SELECT count() FROM {table} FINAL")
}

/// The statement that computes volatilities. Old servers lack window functions, so it puts each ticker's bars in a
/// sorted array, and compares that array with itself, one bar apart.
pub(crate) fn volatility(table: &str) -> String {
    format!(
        "SELECT code, toYear(change.1) AS year, stddevSamp(change.2) * sqrt(252) AS volatility
         FROM (
             SELECT code, arrayJoin(arrayMap(
                 (later, earlier) -> (later.1, log(later.2 / earlier.2)), arrayPopFront(bars), arrayPopBack(bars)
             )) AS change
             FROM (SELECT code, arraySort(groupArray((date, adj_close))) AS bars FROM {table} FINAL GROUP BY code)
         )
         GROUP BY code, year ORDER BY code, year"
    )
}

#[derive(Debug, Row, Deserialize)]
pub(crate) struct Volatility {
    code: String,
    year: u16,
    volatility: f64,
}

/// The volatilities, by ticker and year.
pub(crate) type Volatilities = BTreeMap<String, BTreeMap<u16, f64>>;

pub(crate) fn by_ticker(found: Vec<Volatility>) -> Volatilities {
    let mut tickers = Volatilities::new();
    for Volatility { code, year, volatility } in found {
        tickers.entry(code).or_default().insert(year, volatility);
    }
    tickers
}
