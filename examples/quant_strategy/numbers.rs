//! The results of a run, and their printed form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::bars::ZONE;
use crate::strategy::{Performance, Signal, TERMS};

#[derive(Debug, Default, Serialize)]
pub(crate) struct Numbers {
    pub(crate) rows: Rows,
    pub(crate) messages: Messages,
    pub(crate) tickers: BTreeMap<String, Ticker>,
}

/// The rows, as each server counts them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rows {
    pub(crate) mongodb: u64,
    pub(crate) clickhouse: u64,
    /// The signals, one per ticker.
    pub(crate) redis: u64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Messages {
    pub(crate) published: u64,
    /// The messages that the broker confirmed.
    pub(crate) confirmed: u64,
    pub(crate) consumed: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Ticker {
    /// Computed from the bars that RabbitMQ delivered.
    #[serde(flatten)]
    pub(crate) performance: Performance,
    /// Computed from the first and the last bar that MongoDB holds.
    pub(crate) buy_and_hold: f64,
    /// By year, computed from the bars that ClickHouse holds.
    pub(crate) volatility: BTreeMap<u16, f64>,
    /// The last signal, as Redis holds it.
    pub(crate) signal: Signal,
}

impl Numbers {
    /// Whether every bar is in both stores, and came through the broker.
    pub(crate) fn complete(&self, bars: u64) -> bool {
        let Messages { published, confirmed, consumed } = self.messages;
        [self.rows.mongodb, self.rows.clickhouse, published, confirmed, consumed] == [bars; 5]
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rows { mongodb, clickhouse, redis } = self.rows;
        writeln!(f, "rows      {mongodb} in MongoDB, {clickhouse} in ClickHouse; {redis} signals in Redis")?;
        writeln!(f, "          (date_stamp: when the day began in {ZONE})")?;
        let Messages { published, confirmed, consumed } = self.messages;
        writeln!(f, "messages  {published} published, {confirmed} confirmed, {consumed} consumed\n\n{TERMS}\n")?;
        writeln!(
            f,
            "{:<6} {:>6} {:>9} {:>13} {:>13}  last signal",
            "ticker", "trades", "return", "buy and hold", "max drawdown"
        )?;
        for (code, ticker) in &self.tickers {
            let Performance { trades, open, total_return, max_drawdown } = ticker.performance;
            let trades = format!("{trades}{}", if open { "+1" } else { "" });
            let Signal { action, price, date, .. } = &ticker.signal;
            writeln!(
                f,
                "{code:<6} {trades:>6} {:>9} {:>13} {:>13}  {action} at {price:.2} on {date}",
                percent(total_return),
                percent(ticker.buy_and_hold),
                percent(-max_drawdown)
            )?;
        }
        writeln!(f, "(+1: bought and not sold yet)\n\nAnnualised volatility of daily log returns, by ClickHouse")?;
        write!(f, "{:<6}", "year")?;
        for code in self.tickers.keys() {
            write!(f, " {code:>8}")?;
        }
        let years: BTreeSet<_> = self.tickers.values().flat_map(|ticker| ticker.volatility.keys()).collect();
        for year in years {
            write!(f, "\n{year:<6}")?;
            for ticker in self.tickers.values() {
                write!(
                    f,
                    " {:>8}",
                    ticker.volatility.get(year).map_or_else(|| "-".to_owned(), |volatility| percent(*volatility))
                )?;
            }
        }
        writeln!(f)
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
