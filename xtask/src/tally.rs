//! Counts the tests that ran, per backend, and lists those that failed.

use std::fmt;

/// A backend, and the words that stand for it in the name of a test or of its binary.
const BACKENDS: [(&str, &[&str]); 4] = [
    ("MongoDB", &["mongo"]),
    ("RabbitMQ", &["rabbit", "amqp", "lapin"]),
    ("ClickHouse", &["clickhouse", "bridge"]),
    ("Redis", &["redis"]),
];

/// The counts so far. `count` updates them with each line of output.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    binary: String,
    per_backend: [usize; BACKENDS.len()],
    elsewhere: usize,
    executed: usize,
    failed: Vec<String>,
    binaries: usize,
    /// The sums of each binary's result line: passed, failed, ignored, measured, filtered out.
    totals: [usize; TOTALS.len()],
}

const TOTALS: [&str; 5] = ["passed", "failed", "ignored", "measured", "filtered out"];

impl Tally {
    /// Counts one line of output. The result says whether the tests have begun.
    pub(crate) fn count(&mut self, line: &str) -> bool {
        let line = line.trim();
        if let Some(binary) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            // `tests/redis.rs (target/debug/deps/redis-0123456789abcdef)`
            self.binary = binary.split(" (").next().unwrap_or_default().to_lowercase();
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.binaries += 1;
            self.add_totals(result);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... ")) {
            // A test's own output may stand where its outcome belongs.
            if !outcome.starts_with("ignored") {
                self.add_test(name);
            }
            if outcome.ends_with("FAILED") {
                self.failed.push(format!("{}: {name}", self.binary));
            }
        }
        !self.binary.is_empty()
    }

    fn add_test(&mut self, name: &str) {
        self.executed += 1;
        let name = format!("{} {}", self.binary, name.to_lowercase());
        let mut found = false;
        for ((_, words), count) in BACKENDS.iter().zip(&mut self.per_backend) {
            if words.iter().any(|word| name.contains(word)) {
                *count += 1;
                found = true;
            }
        }
        self.elsewhere += usize::from(!found);
    }

    fn add_totals(&mut self, result: &str) {
        for part in result.split(['.', ';']).map(str::trim) {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let place = TOTALS.iter().position(|total| *total == what);
            if let (Some(place), Ok(number)) = (place, number.parse::<usize>()) {
                self.totals[place] += number;
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tests executed (one that names two backends counts for both):")?;
        for ((backend, _), count) in BACKENDS.iter().zip(self.per_backend) {
            writeln!(f, "  {backend:<12}{count:>5}")?;
        }
        writeln!(f, "  {:<12}{:>5}", "none named", self.elsewhere)?;
        writeln!(f, "  {:<12}{:>5} in {} binaries", "all", self.executed, self.binaries)?;
        let verdict = if self.totals[1] == 0 && self.binaries > 0 { "ok" } else { "FAILED" };
        let totals: Vec<String> =
            TOTALS.iter().zip(self.totals).map(|(what, number)| format!("{number} {what}")).collect();
        for name in &self.failed {
            writeln!(f, "failed: {name}")?;
        }
        write!(f, "total: {verdict}. {}", totals.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_by_the_name_of_test_and_binary() {
        let mut tally = Tally::default();
        for line in [
            "     Running tests/redis.rs (target/debug/deps/redis-0)",
            "test survives ... ok",
            "test with_mongo ... some outputok",
            "test slow ... ignored",
            "test slower ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "     Running unittests src/lib.rs (target/debug/deps/resource_pool-0)",
            "test slot::once ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.count(line);
        }
        assert_eq!(tally.per_backend, [1, 0, 0, 3]);
        assert_eq!((tally.executed, tally.elsewhere, tally.binaries), (4, 1, 2));
        assert_eq!(tally.failed, ["tests/redis.rs: slower"]);
        assert_eq!(tally.totals, [2, 1, 1, 0, 2]);
    }
}
