//! Imports point down: which layer of `src/` may name which.

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may name itself and those before it.
const LAYERS: [&str; 6] = ["base", "net", "lifecycle", "kinds", "pool", "seen"];

/// The parts that several kinds share, which name none of them.
const SHARED: [&str; 2] = ["rest", "sql"];

#[test]
fn every_import_points_down() {
    let found = pointing_up(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(found.is_empty(), "these imports point up: {found:#?}");
}

/// A tree with one import of each wrong sort, and of each right one.
#[test]
fn an_import_that_points_up_is_named() {
    let src = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layers");
    let write = |file: &str, text: &str| {
        let file = src.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    write("lib.rs", "pub use crate::pool::Pool;");
    write("base/error.rs", "use crate::{base::clock, net::tls};\n// crate::pool in a comment\n");
    write("net/tls.rs", "use crate::base::error::Error;\nfn f() -> crate::Failure {}\n");
    write(
        "kinds/redis/mod.rs",
        "use crate::kinds::{mongo::Mongo, redis::x};\nuse crate::lifecycle::slot;\n/// [x](crate::pool)\n",
    );
    let found = pointing_up(&src);
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(
        found,
        ["base/error.rs names net::tls", "kinds/redis/mod.rs names kinds::mongo", "net/tls.rs names Failure"]
    );
}

/// A kind that can be configured has names for users, which the table of kinds exports with all the rest.
#[test]
fn a_kind_is_named_outside_its_folder_by_the_table_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let kinds: BTreeSet<String> = fs::read_dir(src.join("kinds"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("exports.rs").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(kinds.len() >= 4, "{kinds:?}");
    for file in sources(&src).into_iter().filter(|file| !file.starts_with(src.join("kinds"))) {
        let text = fs::read_to_string(&file).unwrap();
        // The crate's root says when the documents compile, and adapters for r2d2 need no table.
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for feature in code.split("feature = \"").skip(1).filter(|_| file.file_name() != Some("lib.rs".as_ref())) {
            let feature = feature.split('"').next().unwrap_or_default();
            assert!(
                [
                    "tls",
                    "r2d2",
                    "serde",
                    "streams",
                    "checkouts",
                    "macros",
                    "tower",
                    "systemd",
                    "metrics",
                    "admin",
                    "processes",
                    "files",
                    "_sql",
                    "requests"
                ]
                .contains(&feature),
                "{} asks for {feature}",
                file.display()
            );
        }
        for kind in named(&text).iter().filter(|path| path[0] == "kinds").filter_map(|path| path.get(1)) {
            assert!(!kinds.contains(kind), "{} names {kind}", file.display());
        }
    }
}

/// A user's kind can be made of all that the built-in ones are made of: `lib.rs`, `config` or `adapter` exports it.
#[test]
fn what_the_kinds_are_made_of_is_open() {
    /// Tools on the standard library and tokio alone, which know nothing of pools.
    const PLAIN: [&str; 20] = [
        "BoxFuture",
        "Counted",
        "FirstFew",
        "LeftBehind",
        "RunFolder",
        "SpinLock",
        "Turns",
        "apart",
        "block",
        "none",
        "deadline",
        "gone",
        "park_on",
        "park_until",
        "runs_in_group",
        "setters",
        "thread",
        "thread_number",
        "until",
        "within",
    ];
    /// The table of kinds makes its verbs of these. A user's kind has `kind` and a trait of its own instead, as in `examples/lines`.
    const TABLE: [&str; 6] = ["Acquire", "Acquirer", "AnySlot", "BlockingGuard", "Slot", "TaskGuard"];
    /// Adapters for r2d2 are made of these, and users have `R2d2` instead.
    const R2D2: [&str; 3] = ["Adapted", "AdapterHook", "Loan"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let exported: BTreeSet<String> = ["lib.rs", "pool/config.rs", "pool/adapter.rs"]
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(src.join(file)).unwrap();
            let uses: Vec<&str> = text.split("pub use ").skip(1).flat_map(|rest| rest.split(';').next()).collect();
            let words = uses.join(" ");
            words.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let is_left = |name: &&str| PLAIN.contains(name) || TABLE.contains(name) || R2D2.contains(name);
    let mut used = BTreeSet::new();
    for file in sources(&src.join("kinds")) {
        let named = named(&fs::read_to_string(&file).unwrap());
        used.extend(named.into_iter().filter(|path| ["base", "net", "lifecycle"].contains(&&*path[0])));
    }
    let closed: Vec<_> = used
        .iter()
        .filter(|path| {
            let name = path.iter().rfind(|name| *name != "self").unwrap();
            // Its items stand in `PLAIN`, but for `block_on`.
            !exported.contains(name) && !is_left(&&**name) && name != "runtime"
        })
        .collect();
    assert!(used.len() > 40 && closed.is_empty(), "{closed:?}");
}

/// One type for one name. The types for threads are twins of those for tasks, and a type that stands in for another one without a
/// feature is no second one.
#[test]
fn no_two_types_share_a_name() {
    let mut types: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let name = file.to_str().unwrap();
        if name.contains("blocking") || name.contains("/model/") || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub(super) ")).unwrap_or(line);
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let sorts = ["struct ", "enum ", "trait ", "type "];
            let Some(rest) = sorts.iter().find_map(|sort| line.strip_prefix(sort)) else { continue };
            if lines[number.saturating_sub(3)..number].iter().any(|line| line.starts_with("#[cfg(not(")) {
                continue;
            }
            let word: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            types.entry(word).or_default().insert(name.to_owned());
        }
    }
    assert!(types.len() > 150, "{}", types.len());
    types.retain(|_, files| files.len() > 1);
    assert!(types.is_empty(), "{types:#?}");
}

/// A comment names its subject.
#[test]
fn no_comment_begins_with_a_riddle() {
    const RIDDLES: [&str; 4] = ["What ", "Whoever ", "Of which ", "That which "];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        "src",
        "cli/src",
        "cli/tests",
        "services/src",
        "xtask/src",
        "tests",
        "benches",
        "examples",
        "models",
        "fuzz/body",
    ];
    let mut read = 0;
    let mut found = Vec::new();
    for file in folders.iter().flat_map(|folder| sources(&root.join(folder))) {
        if file.extension() != Some("rs".as_ref()) {
            continue;
        }
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
            read += 1;
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            if RIDDLES.iter().any(|riddle| comment.starts_with(riddle)) {
                found.push(format!("{}:{}: {comment}", file.strip_prefix(root).unwrap().display(), number + 1));
            }
        }
    }
    assert!(read > 3_000 && found.is_empty(), "{}", found.join("\n"));
}

/// A reader holds about so much in mind at once.
#[test]
fn no_file_has_over_600_lines() {
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 600, "{} has {lines}", file.display());
    }
}

/// Files of the core that name each other, be it by way of others, could only be understood together.
#[test]
fn the_core_has_no_circle() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lifecycle");
    let module = |file: &Path| {
        let module = file.strip_prefix(&core).unwrap().with_extension("").to_str().unwrap().replace('/', "::");
        module.strip_suffix("::mod").unwrap_or(&module).to_owned()
    };
    let files: BTreeMap<String, PathBuf> = sources(&core)
        .into_iter()
        .map(|file| (module(&file), file))
        // The models name what they are models of.
        .filter(|(module, _)| !module.starts_with("model"))
        .collect();
    let names = |file: &PathBuf| -> BTreeSet<String> {
        let named = named(&fs::read_to_string(file).unwrap()).into_iter();
        let inside = named.filter(|path| path[0] == "lifecycle");
        inside
            .filter_map(|path| {
                (2..=path.len()).map(|end| path[1..end].join("::")).rfind(|name| files.contains_key(name))
            })
            .collect()
    };
    let mut left: BTreeMap<String, BTreeSet<String>> =
        files.iter().map(|(module, file)| (module.clone(), names(file))).collect();
    assert!(left.len() > 25 && left.values().any(|names| names.len() > 5), "{left:?}");
    // A file that names no file that is left cannot be in a circle.
    while let Some(free) =
        left.iter().find(|(module, names)| names.iter().all(|name| name == *module)).map(|(free, _)| free.clone())
    {
        left.remove(&free);
        left.values_mut().for_each(|names| names.retain(|name| *name != free));
    }
    assert!(left.is_empty(), "these name each other: {left:#?}");
}

/// Beside the tools of `base`, the views from outside name what `lib.rs` exports to users, and nothing else.
#[test]
fn the_views_from_outside_use_the_public_interface_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let exported = exported(&fs::read_to_string(src.join("lib.rs")).unwrap());
    assert!(exported.len() > 40 && exported.contains("ResourcePool") && !exported.contains("Registry"), "{exported:?}");
    let mut used = BTreeSet::new();
    for file in sources(&src.join("seen")) {
        used.extend(named(&fs::read_to_string(&file).unwrap()).into_iter().map(|mut path| path.remove(0)));
    }
    used.retain(|name| name != "seen" && name != "base");
    let inner: Vec<_> = used.iter().filter(|name| !exported.contains(*name)).collect();
    assert!(used.contains("ResourcePool") && inner.is_empty(), "{inner:?} of {used:?}");
}

/// The names that this text exports from the crate's root.
fn exported(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let uses = code.split("pub use ").skip(1).flat_map(|rest| rest.split(';').next());
    // A group in braces may stand in the middle of the line, as in `a::{b, c}`, and each path of it has a last name.
    uses.flat_map(|path| tree(&mut &*path)).filter_map(|path| path.last().cloned()).collect()
}

fn pointing_up(src: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in sources(src) {
        let inside = file.strip_prefix(src).unwrap().to_str().unwrap();
        let mut path = inside.split('/');
        let (folder, kind) = (path.next().unwrap(), path.next().unwrap_or_default());
        let Some(mine) = LAYERS.iter().position(|layer| *layer == folder) else { continue };
        for path in named(&fs::read_to_string(&file).unwrap()) {
            let layer = path[0].as_str();
            let module = path.get(1).filter(|_| LAYERS.contains(&layer)).map_or("", String::as_str);
            // The views from outside name the crate's root, and what that exports.
            if folder == "seen" && !LAYERS.contains(&layer) {
                continue;
            }
            let its = LAYERS.iter().position(|known| *known == layer);
            let is_other_kind = layer == "kinds"
                && folder == "kinds"
                && module != kind.trim_end_matches(".rs")
                && !SHARED.contains(&module)
                && kind != "mod.rs";
            if its.is_none_or(|its| its > mine) || is_other_kind {
                found.insert(format!("{inside} names {}", [layer, module].join("::").trim_end_matches("::")));
            }
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let sorted = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    };
    entries.flat_map(sorted).collect()
}

/// Everything that code names by `crate::`, as segments.
fn named(text: &str) -> BTreeSet<Vec<String>> {
    let code: String = text.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]).collect();
    let mut found = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let mut path = path;
        found.extend(tree(&mut path));
    }
    found
}

/// Takes a path, or a group in braces, off the front of `text`, as the segments of each path in it.
fn tree(text: &mut &str) -> Vec<Vec<String>> {
    *text = text.trim_start();
    if let Some(inside) = text.strip_prefix('{') {
        *text = inside;
        let mut paths = Vec::new();
        loop {
            *text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if text.is_empty() || text.starts_with('}') {
                *text = text.strip_prefix('}').unwrap_or_default();
                return paths;
            }
            paths.extend(tree(text));
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    // `*` and `as name` have no word of their own.
    let (word, rest) = text.split_at(end);
    let rest = if word.is_empty() { rest.get(1..).unwrap_or_default() } else { rest };
    *text = rest;
    let Some(rest) = rest.strip_prefix("::") else {
        *text = rest
            .trim_start()
            .strip_prefix("as ")
            .map_or(rest, |renamed| renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'));
        return vec![vec![word.to_owned()]];
    };
    *text = rest;
    let below = tree(text);
    below.into_iter().map(|path| [vec![word.to_owned()], path].concat()).collect()
}
