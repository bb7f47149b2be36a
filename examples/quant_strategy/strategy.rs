//! The strategy: long while the 20-bar average of the adjusted close is above the 60-bar one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bars::Bar;

const FAST: usize = 20;
const SLOW: usize = 60;
/// The cost of an order, as a share of the money that it moves.
pub(crate) const COST: f64 = 0.001;

/// The meaning of the numbers, printed with them.
pub(crate) const TERMS: &str = "\
Price: adjusted close. When the 20-bar average crosses the 60-bar one at a bar's close, the NEXT bar buys with all money,
or sells all, at its adjusted close, for 0.1 % of the money moved. A position still open is valued at the last adjusted
close. Buy and hold pays the same cost once. Drawdown: the deepest fall below an earlier peak, at closes.";

/// Follows one ticker, bar by bar.
#[derive(Debug)]
pub(crate) struct Strategy {
    closes: VecDeque<f64>,
    was_above: Option<bool>,
    order: Option<Action>,
    cash: f64,
    shares: f64,
    trades: usize,
    worth: f64,
    peak: f64,
    max_drawdown: f64,
}

/// A strategy begins with exactly one unit of account.
impl Default for Strategy {
    fn default() -> Self {
        Strategy {
            closes: VecDeque::with_capacity(SLOW),
            was_above: None,
            order: None,
            cash: 1.0,
            shares: 0.0,
            trades: 0,
            worth: 1.0,
            peak: 1.0,
            max_drawdown: 0.0,
        }
    }
}

impl Strategy {
    /// Takes the next bar. Returns a signal if the averages crossed at its close.
    pub(crate) fn on_bar(&mut self, bar: &Bar) -> Option<Signal> {
        let price = bar.adj_close;
        self.execute(price);
        self.value(price);
        let action = self.cross(price)?;
        // There is nothing to sell before the first buy.
        self.order = Some(action).filter(|action| *action == Action::Buy || self.shares > 0.0);
        Some(Signal { code: bar.code.clone(), action, price, volume: bar.vol, date: bar.date.clone() })
    }

    /// The performance up to the last bar.
    pub(crate) fn result(&self) -> Performance {
        Performance {
            trades: self.trades,
            open: self.shares > 0.0,
            total_return: self.worth - 1.0,
            max_drawdown: self.max_drawdown,
        }
    }

    fn execute(&mut self, price: f64) {
        match self.order.take() {
            Some(Action::Buy) => {
                self.shares = self.cash * (1.0 - COST) / price;
                self.cash = 0.0;
            }
            Some(Action::Sell) => {
                self.cash = self.shares * price * (1.0 - COST);
                self.shares = 0.0;
                self.trades += 1;
            }
            None => {}
        }
    }

    fn value(&mut self, price: f64) {
        self.worth = self.cash + self.shares * price;
        self.peak = self.peak.max(self.worth);
        self.max_drawdown = self.max_drawdown.max(1.0 - self.worth / self.peak);
    }

    fn cross(&mut self, price: f64) -> Option<Action> {
        if self.closes.len() == SLOW {
            self.closes.pop_front();
        }
        self.closes.push_back(price);
        if self.closes.len() < SLOW {
            return None;
        }
        let above = self.average(FAST) > self.average(SLOW);
        match (self.was_above.replace(above), above) {
            (Some(false), true) => Some(Action::Buy),
            (Some(true), false) => Some(Action::Sell),
            _ => None,
        }
    }

    fn average(&self, length: usize) -> f64 {
        self.closes.iter().rev().take(length).sum::<f64>() / length as f64
    }
}

/// The return of buying at the first price and holding up to the last, at the same cost.
pub(crate) fn buy_and_hold(first: f64, last: f64) -> f64 {
    last * (1.0 - COST) / first - 1.0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Buy,
    Sell,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Action::Buy => "buy",
            Action::Sell => "sell",
        })
    }
}

/// The last crossing of a ticker. Redis holds it under `signal:{code}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Signal {
    pub(crate) code: String,
    pub(crate) action: Action,
    pub(crate) price: f64,
    pub(crate) volume: f64,
    pub(crate) date: String,
}

impl Signal {
    /// How long Redis keeps a signal, so that signals of earlier runs do not stay.
    pub(crate) const KEPT: Duration = Duration::from_secs(300);

    /// Parses the values that Redis holds.
    pub(crate) fn by_ticker(cached: Vec<Option<String>>) -> serde_json::Result<BTreeMap<String, Signal>> {
        let signal = |json: &String| serde_json::from_str(json).map(|signal: Signal| (signal.code.clone(), signal));
        cached.iter().flatten().map(signal).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Performance {
    /// The number of positions that were bought and sold again.
    pub(crate) trades: usize,
    /// Whether a further position was bought and not sold yet.
    pub(crate) open: bool,
    pub(crate) total_return: f64,
    pub(crate) max_drawdown: f64,
}
