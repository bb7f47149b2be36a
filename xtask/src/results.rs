//! Reads the rows that the duels wrote, and makes the table and the plots of them.
//!
//! `benches/results/` has a file for each part of the bench and a line for each duel. Every other figure in `benches/`
//! is made of these files.

use crate::plot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The names of the table, of the folder of rows and of the folder of plots, in `benches/`.
pub(crate) const TABLE: &str = "RESULTS.md";
pub(crate) const KEPT: &str = "results";
pub(crate) const PLOTS: &str = "plots";

/// One part of the bench.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) head: Head,
    rows: Vec<Row>,
}

/// The first line of a part's file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) name: String,
    title: String,
    place: usize,
    /// The versions of the servers that the part used.
    servers: BTreeMap<String, String>,
    pub(crate) run: Option<Run>,
}

/// The date, commit, machine and crates of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    pub(crate) crates: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory: String,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
}

/// One duel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    what: String,
    pub(crate) unit: String,
    pub(crate) rounds: usize,
    pub(crate) contestants: Vec<Measured>,
    pub(crate) claims: Vec<Judged>,
    pub(crate) note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) samples: Vec<f64>,
    pub(crate) median: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Judged {
    claim: String,
    aim: Option<f64>,
    value: f64,
    unit: String,
    pub(crate) limit: Option<(String, f64)>,
    verdict: String,
    reason: Option<String>,
}

/// All parts of a folder, in their order.
pub(crate) fn read(folder: &Path) -> Result<Vec<Part>, Box<dyn Error>> {
    let mut parts = Vec::new();
    for file in fs::read_dir(folder)? {
        parts.push(Part::parse(&fs::read_to_string(file?.path())?)?);
    }
    parts.sort_by(|one, other| (one.head.place, &one.head.name).cmp(&(other.head.place, &other.head.name)));
    Ok(parts)
}

/// Makes the table and the plots anew.
pub(crate) fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let parts = read(&folder.join(KEPT))?;
    fs::write(folder.join(TABLE), table(&parts))?;
    let shown = folder.join(PLOTS);
    if shown.exists() {
        fs::remove_dir_all(&shown)?;
    }
    fs::create_dir_all(&shown)?;
    for (name, plot) in plots(&parts) {
        fs::write(shown.join(name), plot)?;
    }
    Ok(())
}

/// Deletes the files of parts that no longer exist.
pub(crate) fn forget_all_but(names: &[&str], folder: &Path) -> Result<(), Box<dyn Error>> {
    for part in read(&folder.join(KEPT))? {
        if !names.contains(&&*part.head.name) {
            fs::remove_file(folder.join(KEPT).join(part.file()))?;
        }
    }
    Ok(())
}

/// The plots by the names of their files.
pub(crate) fn plots(parts: &[Part]) -> impl Iterator<Item = (String, String)> {
    parts.iter().flat_map(|part| &part.rows).map(|row| (format!("{}.svg", row.id), plot::svg(row)))
}

pub(crate) fn table(parts: &[Part]) -> String {
    let mut text = String::from(INTRODUCTION);
    let verdicts: Vec<_> = parts.iter().flat_map(|part| &part.rows).flat_map(|row| &row.claims).collect();
    let count = |verdict: &str| verdicts.iter().filter(|judged| judged.verdict == verdict).count();
    let (aim, met, missed) = (count("meets the aim"), count("meets"), count("misses"));
    let _ = writeln!(text, "Of {} claims {aim} meet the aim, {met} meet, {missed} miss.", verdicts.len());
    let runs: BTreeSet<_> = parts.iter().filter_map(|part| part.head.run.as_ref()).map(Run::place).collect();
    for part in parts {
        let Head { title, run, .. } = &part.head;
        let _ = writeln!(text, "\n## {title}\n");
        if let Some(run) = run {
            let _ = write!(text, "Measured {} at commit `{}`", run.date, run.commit);
            if runs.len() > 1 {
                let number = runs.iter().position(|place| *place == run.place()).map_or(0, |index| index + 1);
                let _ = write!(text, " on machine {number}");
            }
            text.push_str(".\n\n");
        }
        text.push_str("| what | contestants: median (least to most) | claims |\n|---|---|---|\n");
        for row in &part.rows {
            text.push_str(&row.line());
        }
        text.push('\n');
        for row in &part.rows {
            let _ = writeln!(text, "![{}]({PLOTS}/{}.svg)\n", row.title(), row.id);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    let servers: BTreeMap<_, _> = parts.iter().flat_map(|part| &part.head.servers).collect();
    let servers: Vec<_> = servers.iter().map(|(name, version)| format!("{name} {version}")).collect();
    text.push_str("\n## Measured on\n");
    for (index, (machine, crates)) in runs.iter().enumerate() {
        let Machine { cpu, cores, memory, kernel, rustc } = machine;
        let number = if runs.len() > 1 { format!("{}. ", index + 1) } else { String::new() };
        let crates: Vec<_> = crates.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ =
            writeln!(text, "\n{number}{cpu}, {cores} cores, {memory}, Linux {kernel}, {rustc}; {}.", crates.join(", "));
    }
    let _ = writeln!(text, "\nServers: {}.", servers.join(", "));
    text
}

const INTRODUCTION: &str = "\
# Results

<!-- written by `cargo xtask bench`, from what it keeps in `results/`; nothing here is written by hand -->

Other pools and the bare drivers are measured beside this pool in one process: every round measures each contestant
once, in an order of its own, so that whatever else the machine does, and what a contestant leaves to the next one, meets
all alike. A figure is the median over the rounds; less is better. A claim that compares two is the median of what each
round says by itself. The servers are real, private ones on the same machine. What `misses` does not reach what is
claimed, for the reason given; what `meets the aim` is as good as it is to become.

";

impl Run {
    /// The facts that do not change from run to run.
    fn place(&self) -> (&Machine, &BTreeMap<String, String>) {
        (&self.machine, &self.crates)
    }
}

impl Part {
    fn parse(text: &str) -> Result<Part, Box<dyn Error>> {
        let mut lines = text.lines();
        let head = serde_json::from_str(lines.next().ok_or("a part without a head")?)?;
        Ok(Part { head, rows: lines.map(serde_json::from_str).collect::<Result<_, _>>()? })
    }

    pub(crate) fn keep(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        let mut text = serde_json::to_string(&self.head)? + "\n";
        for row in &self.rows {
            text += &(serde_json::to_string(row)? + "\n");
        }
        fs::create_dir_all(folder)?;
        Ok(fs::write(folder.join(self.file()), text)?)
    }

    fn file(&self) -> String {
        format!("{}.jsonl", self.head.name)
    }
}

impl Row {
    /// The description of the duel, with a capital first letter.
    pub(crate) fn title(&self) -> String {
        let mut rest = self.what.chars();
        rest.next().map_or(String::new(), |first| first.to_uppercase().chain(rest).collect())
    }

    /// The row's line in the table.
    fn line(&self) -> String {
        let (factor, unit) = scale(&self.unit, self.contestants.iter().map(|one| one.median));
        let contestants = self.contestants.iter().map(|one| {
            let (least, most) = one.span();
            let name = if one.is_ours() { format!("**{}**", one.name) } else { one.name.clone() };
            let median = in_unit(one.median / factor, &unit);
            if least == most {
                format!("{name} {median}")
            } else {
                format!("{name} {median} ({} to {})", figure(least / factor), figure(most / factor))
            }
        });
        let note = self.note.as_ref().map_or(String::new(), |note| format!("<br>*{note}*"));
        let claims: Vec<_> = self.claims.iter().map(Judged::told).collect();
        let cells =
            [format!("{}{note}", self.title()), contestants.collect::<Vec<_>>().join("<br>"), claims.join("<br>")];
        format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
    }
}

impl Measured {
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with("resource_pool")
    }

    /// The least and the most of the samples.
    pub(crate) fn span(&self) -> (f64, f64) {
        let all = self.samples.iter().copied();
        (all.clone().fold(f64::INFINITY, f64::min), all.fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Judged {
    fn told(&self) -> String {
        let (factor, unit) = scale(&self.unit, [self.value]);
        let aim = self.aim.map_or(String::new(), |aim| format!(" (aim {aim})"));
        let reason = match (self.verdict.as_str(), &self.reason) {
            ("misses", Some(reason)) => format!("; {reason}"),
            ("misses", None) => "; **reason not yet known**".to_owned(),
            _ => String::new(),
        };
        let verdict = if self.verdict == "misses" { "**`misses`**".to_owned() } else { format!("`{}`", self.verdict) };
        format!("{verdict} {}{aim}: **{}**{reason}", self.claim, in_unit(self.value / factor, &unit))
    }
}

/// The divisor and its unit, chosen so that the least of these values is a handy number.
pub(crate) fn scale(unit: &str, values: impl IntoIterator<Item = f64>) -> (f64, String) {
    let least = values.into_iter().map(f64::abs).fold(f64::INFINITY, f64::min);
    let (factor, prefix) = match unit.strip_prefix("ns") {
        Some(_) if least >= 1e6 => (1e6, "ms"),
        Some(_) if least >= 1e3 => (1e3, "µs"),
        _ => return (1.0, unit.to_owned()),
    };
    (factor, unit.replacen("ns", prefix, 1))
}

pub(crate) fn in_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", figure(value)).trim_end().to_owned()
}

/// The value with as many digits as say something.
pub(crate) fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = r#"{"name":"lease","title":"Leases","place":0,"servers":{"Redis":"7.0"},"run":null}
{"id":"a","what":"a | b","unit":"ns CPU","rounds":3,"contestants":[{"name":"resource_pool","samples":[1500.0,2000.5,9000.0],"median":2000.5},{"name":"r2d2","samples":[7.0],"median":7.0}],"claims":[{"claim":"resource_pool: at most 40 ns CPU","aim":20.0,"value":2000.5,"unit":"ns CPU","limit":["resource_pool",40.0],"verdict":"misses","reason":null},{"claim":"b","aim":null,"value":3.14159,"unit":"×","limit":null,"verdict":"meets","reason":null},{"claim":"c","aim":null,"value":0.5,"unit":"×","limit":null,"verdict":"misses","reason":"the kernel's"}],"note":null}
"#;

    #[test]
    fn a_missed_claim_has_its_reason_or_is_seen_to_have_none() {
        let table = table(&[Part::parse(PART).unwrap()]);
        assert!(table.contains("Of 3 claims 0 meet the aim, 1 meet, 2 miss."), "{table}");
        let missed =
            "**`misses`** resource_pool: at most 40 ns CPU (aim 20): **2.00 µs CPU**; **reason not yet known**";
        assert!(table.contains(missed), "{table}");
        assert!(table.contains("`meets` b: **3.14 ×**<br>**`misses`** c: **0.500 ×**; the kernel's |"), "{table}");
        assert!(
            table.contains("| A \\| b | **resource_pool** 2,000 ns CPU (1,500 to 9,000)<br>r2d2 7 ns CPU |"),
            "{table}"
        );
        assert!(table.contains("Servers: Redis 7.0."));
    }

    #[test]
    fn what_is_kept_is_what_was_read() {
        let folder = std::env::temp_dir().join(format!("resource-pool-results-{}", std::process::id()));
        let part = Part::parse(PART).unwrap();
        part.keep(&folder.join(KEPT)).unwrap();
        assert_eq!(fs::read_to_string(folder.join(KEPT).join("lease.jsonl")).unwrap(), PART);
        write(&folder).unwrap();
        assert!(folder.join(PLOTS).join("a.svg").exists());
        forget_all_but(&[], &folder).unwrap();
        assert!(read(&folder.join(KEPT)).unwrap().is_empty());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn figures_are_as_long_as_they_mean_something() {
        let told = [0.0, 1234567.0, 123456.7, -1234.5, 99.95, 9.876, 0.1234, 100.0].map(figure);
        assert_eq!(told, ["0", "1,234,567", "123,457", "-1,234", "100.0", "9.88", "0.123", "100"]);
        assert_eq!(scale("ns CPU", [2.5e6, 9e9]), (1e6, "ms CPU".to_owned()));
        assert_eq!(scale("MiB", [2.5e6]), (1.0, "MiB".to_owned()));
    }
}
