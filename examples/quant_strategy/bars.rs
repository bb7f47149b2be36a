//! Daily bars, in QUANTAXIS's fields.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const CSV: &str = include_str!("../data/stocks.csv");

/// One day of one ticker: a document of `stock_day`, and a message on `realtime_day_{code}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) code: String,
    pub(crate) open: f64,
    pub(crate) high: f64,
    pub(crate) low: f64,
    pub(crate) close: f64,
    /// The close with later splits and dividends removed. QUANTAXIS derives it from `stock_adj`.
    pub(crate) adj_close: f64,
    pub(crate) vol: f64,
    /// The money that changed hands. The source does not have it, so it is close times volume.
    pub(crate) amount: f64,
    /// The day, as `YYYY-MM-DD`.
    pub(crate) date: String,
    /// The time when that day began in [`ZONE`], in seconds since 1970 began in UTC.
    pub(crate) date_stamp: f64,
}

/// QUANTAXIS's own time zone, UTC+8 all year, so that its tools find these bars.
pub(crate) const ZONE: &str = "Asia/Shanghai";
/// The offset of [`ZONE`] in seconds.
const EAST_OF_UTC: i64 = 8 * 3600;

/// The bars of each ticker, the oldest first.
pub(crate) type Bars = BTreeMap<String, Vec<Bar>>;

/// The bars of `examples/data/stocks.csv`.
pub(crate) fn all() -> Result<Bars> {
    let mut bars = Bars::new();
    for (number, line) in CSV.lines().enumerate().skip(1) {
        let bar = parse(line).with_context(|| format!("line {} of stocks.csv", number + 1))?;
        bars.entry(bar.code.clone()).or_default().push(bar);
    }
    Ok(bars)
}

fn parse(line: &str) -> Result<Bar> {
    let fields: Vec<&str> = line.split(',').collect();
    let [code, date, open, high, low, close, vol, adj_close] = fields[..] else {
        anyhow::bail!("has {} fields", fields.len());
    };
    let (close, vol): (f64, f64) = (close.parse()?, vol.parse()?);
    Ok(Bar {
        code: code.to_owned(),
        open: open.parse()?,
        high: high.parse()?,
        low: low.parse()?,
        close,
        adj_close: adj_close.parse()?,
        vol,
        amount: close * vol,
        date: date.to_owned(),
        date_stamp: (days_since_1970(date)? * 86_400 - EAST_OF_UTC) as f64,
    })
}

/// The number of a day, given as `YYYY-MM-DD`. ClickHouse's `Date` is the same number.
pub(crate) fn days_since_1970(date: &str) -> Result<i64> {
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (parts.next(), parts.next(), parts.next()) else {
        anyhow::bail!("{date:?} is no date");
    };
    // In years that begin in March, the leap day is the last day.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_month = (153 * month + 2) / 5;
    Ok(year * 365 + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - 719_468)
}
