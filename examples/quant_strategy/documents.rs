//! Bars as MongoDB keeps them.

use anyhow::{Result, bail};
use mongodb::IndexModel;
use mongodb::bson::{Document, doc, to_document};
use mongodb::options::IndexOptions;
use serde::Deserialize;

use crate::bars::Bar;

pub(crate) const COLLECTION: &str = "stock_day";
/// The number of bars in one command.
pub(crate) const BATCH: usize = 1000;

/// The order of the index: ticker by ticker, the oldest bar first.
pub(crate) fn in_order() -> Document {
    doc! { "code": 1, "date_stamp": 1 }
}

/// QUANTAXIS's index. It is unique, so that two parallel runs upsert one document.
pub(crate) fn index() -> IndexModel {
    IndexModel::builder().keys(in_order()).options(IndexOptions::builder().unique(true).build()).build()
}

/// A command that writes these bars, and replaces those that exist.
pub(crate) fn upsert(bars: &[&Bar]) -> Result<Document> {
    let mut updates = Vec::with_capacity(bars.len());
    for bar in bars {
        let key = doc! { "code": &bar.code, "date_stamp": bar.date_stamp };
        updates.push(doc! { "q": key, "u": to_document(bar)?, "upsert": true });
    }
    Ok(doc! { "update": COLLECTION, "updates": updates, "ordered": false })
}

/// Checks the server's reply to such a command. A command may succeed although some of its updates failed.
pub(crate) fn check(reply: &Document, bars: usize) -> Result<()> {
    if let Ok(errors) = reply.get_array("writeErrors") {
        bail!("MongoDB refused {} bars: {}", errors.len(), errors[0]);
    }
    match reply.get_i32("n") {
        Ok(written) if written as usize == bars => Ok(()),
        written => bail!("MongoDB wrote {written:?} of {bars} bars"),
    }
}

/// The pipeline that finds the first and the last price of each ticker.
pub(crate) fn ends() -> [Document; 2] {
    let group = doc! { "_id": "$code", "first": { "$first": "$adj_close" }, "last": { "$last": "$adj_close" } };
    [doc! { "$sort": in_order() }, doc! { "$group": group }]
}

#[derive(Debug, Deserialize)]
pub(crate) struct Ends {
    #[serde(rename = "_id")]
    pub(crate) code: String,
    pub(crate) first: f64,
    pub(crate) last: f64,
}
