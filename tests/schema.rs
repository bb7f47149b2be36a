//! The JSON schema of TOML, and the sample with every key: both are made of the types and of the reference, and are up to
//! date. `cargo xtask schema` writes them.

#![cfg(all(
    feature = "mongodb",
    feature = "rabbitmq",
    feature = "clickhouse",
    feature = "redis",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "llm",
    feature = "chroma",
    feature = "milvus",
    feature = "elastic"
))]
#![allow(missing_docs)]

#[path = "schema/probe.rs"]
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use probe::Shape;
use resource_pool::config::{
    ChromaConfig, ClickHouseConfig, Config, ElasticConfig, HttpConfig, LlmConfig, MilvusConfig, MongoConfig,
    MySqlConfig, Options, PostgresConfig, RabbitMqConfig, RedisConfig, SqliteConfig,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

const OPTIONS: &str = include_str!("../docs/reference/options.md");
/// The variable with which the files are written anew.
const WRITE: &str = "RESOURCE_POOL_TEST_WRITE_SCHEMA";
/// The longest line of the sample.
const WIDTH: usize = 110;

/// The sections of the file, in the order of the reference. `named` has each kind once more.
fn sections() -> Vec<(&'static str, Shape)> {
    vec![
        ("pool", Shape::of::<Options>()),
        ("mongo", Shape::of::<MongoConfig>()),
        ("rabbitmq", Shape::of::<RabbitMqConfig>()),
        ("clickhouse", Shape::of::<ClickHouseConfig>()),
        ("redis", Shape::of::<RedisConfig>()),
        ("postgres", Shape::of::<PostgresConfig>()),
        ("mysql", Shape::of::<MySqlConfig>()),
        ("sqlite", Shape::of::<SqliteConfig>()),
        ("elastic", Shape::of::<ElasticConfig>()),
        ("http", Shape::of::<HttpConfig>()),
        ("llm", Shape::of::<LlmConfig>()),
        ("chroma", Shape::of::<ChromaConfig>()),
        ("milvus", Shape::of::<MilvusConfig>()),
    ]
}

/// Whether the type of this section takes the table.
fn is_taken(section: &str, table: &toml::Table) -> Result<(), String> {
    fn read<T: DeserializeOwned>(table: &toml::Table) -> Result<(), String> {
        table.clone().try_into::<T>().map(drop).map_err(|error| error.to_string())
    }
    match section {
        "pool" => read::<Options>(table),
        "mongo" => read::<MongoConfig>(table),
        "rabbitmq" => read::<RabbitMqConfig>(table),
        "clickhouse" => read::<ClickHouseConfig>(table),
        "redis" => read::<RedisConfig>(table),
        "mysql" => read::<MySqlConfig>(table),
        "sqlite" => read::<SqliteConfig>(table),
        "elastic" => read::<ElasticConfig>(table),
        "http" => read::<HttpConfig>(table),
        "llm" => read::<LlmConfig>(table),
        "chroma" => read::<ChromaConfig>(table),
        "milvus" => read::<MilvusConfig>(table),
        _ => read::<PostgresConfig>(table),
    }
}

/// A key, as the reference tells of it.
struct Told {
    key: String,
    /// The default as the type's `Debug` shows it.
    default: String,
    text: String,
}

/// The rows on this type in the reference, in their order.
fn told(name: &str) -> Vec<Told> {
    let (_, section) = OPTIONS.split_once(&format!("#### `{name}`")).unwrap_or_else(|| panic!("no section on {name}"));
    let rows =
        section.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    let told = rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let bare = |cell: &str| cell.trim_matches('`').to_owned();
        Told { key: bare(cells[1]), default: bare(cells[2]), text: without_links(cells[3]) }
    });
    told.filter(|told| told.key.chars().all(|c| c.is_ascii_lowercase() || c == '_')).collect()
}

/// The text with `[this](there)` as `this`.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (head, shown) = before.rsplit_once('[').expect("the beginning of a link");
        plain.push_str(head);
        plain.push_str(shown);
        rest = after.split_once(')').expect("the end of a link").1;
    }
    plain + rest
}

/// The default as TOML and JSON have it. `None` if there is none, or if it is a secret.
fn default(told: &Told, shape: &Shape) -> Option<Value> {
    let text = told.default.as_str();
    match (text, shape) {
        ("None" | "***", _) | (_, Shape::Table(..)) => None,
        ("[]" | "{}", _) => serde_json::from_str(text).ok(),
        (_, Shape::OneOf(variants)) => {
            let variant = variants.iter().find(|variant| variant.replace('_', "").eq_ignore_ascii_case(text));
            Some(json!(variant.unwrap_or_else(|| panic!("{text} is none of {variants:?}"))))
        }
        (_, Shape::Integer(_)) if told.key.ends_with("_ms") => Some(json!(millis(text))),
        _ => Some(serde_json::from_str(text).unwrap_or_else(|_| panic!("{}: {text}", told.key))),
    }
}

/// The milliseconds of a duration as `Debug` shows it.
fn millis(text: &str) -> u64 {
    let units = [("ms", 1.0), ("ns", 1e-6), ("s", 1000.0)];
    let unit = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (number, unit) = unit.expect("a unit");
    (number.parse::<f64>().expect("a number") * unit) as u64
}

/// A value for a key that has no default.
fn example(section: &str, key: &str, shape: &Shape) -> Value {
    match (section, key) {
        ("mongo", "uri") => json!("mongodb://user:password@localhost:27017/quantaxis"),
        ("rabbitmq", "url") => json!("amqp://user:password@localhost:5672/%2f"),
        ("clickhouse", "url") => json!("http://user:password@localhost:8123/default"),
        ("redis", "url") => json!("redis://user:password@localhost:6379/0"),
        ("postgres", "url") => json!("postgres://user:password@localhost:5432/postgres"),
        ("mysql", "url") => json!("mysql://user:password@localhost:3306/quant"),
        ("sqlite", "url") => json!("sqlite:///var/lib/desk/orders.sqlite?mode=rwc"),
        ("elastic", "url") => json!("https://user:password@search.desk:9200"),
        ("http", "url") => json!("https://user:password@market.desk/api"),
        ("llm", "base_url") => json!("https://api.openai.com/v1"),
        ("chroma", "url") => json!("http://localhost:8000"),
        ("milvus", "url") => json!("http://localhost:19530"),
        ("postgres", "target") => json!("primary"),
        (_, "health_url") => json!("/health"),
        (_, "proxy") => json!("http://proxy.desk:3128"),
        (_, "password") => json!("${PASSWORD}"),
        ("elastic", "api_key") => json!("${ELASTIC_API_KEY}"),
        (_, "api_key") => json!("${OPENAI_API_KEY}"),
        (_, "token") => json!("${TOKEN}"),
        (_, "password_file" | "api_key_file" | "token_file") => json!(format!("/run/secrets/{section}")),
        (_, "auth_source") => json!("admin"),
        (_, "replica_set") => json!("rs0"),
        (_, "ca_file") => json!("/etc/desk/ca.pem"),
        (_, "cert_file") => json!("/etc/desk/strategy.pem"),
        (_, "key_file") => json!("/etc/desk/strategy.key"),
        (_, "server_name") => json!("server.desk"),
        _ => match shape {
            Shape::Bool => json!(true),
            Shape::Integer(_) => json!(100),
            _ => json!(key),
        },
    }
}

/// The sample: every key in a comment of its own, below a comment that tells of it.
fn sample() -> String {
    let mut text = "\
# Every key of the configuration, with its default or an example. RESOURCE_POOL_CONFIG names such a file.
# `cargo xtask schema` writes this file. Each line that begins with `#` and no space can take effect without the `#`.
# Durations are whole milliseconds. ${NAME} in a text is the value of that variable, and $$ is one dollar.
# A password and a URL with a password exclude password_file, and a URL replaces host and port.
"
    .to_owned();
    for (section, shape) in sections() {
        write_table(&mut text, section, section, &shape);
    }
    text += "\n# A further resource, `redis_named(\"cache\")` in code. Every kind has such sections, with the keys above.\n";
    text += "#[named.redis.cache]\n#host = \"cache\"\n";
    text
}

fn write_table(text: &mut String, section: &str, path: &str, shape: &Shape) {
    let Shape::Table(name, keys) = shape else { panic!("{path}: {shape:?}") };
    *text += &format!("\n#[{path}]\n");
    let rows = told(name);
    for told in rows.iter().filter(|told| !matches!(keys[&*told.key], Shape::Table(..))) {
        let shape = &keys[&*told.key];
        let default = default(told, shape);
        let unit = if told.key.ends_with("_ms") { " In milliseconds." } else { "" };
        let or_none = if default.is_none() { " No default." } else { "" };
        for line in wrapped(&format!("{}{unit}{or_none}", told.text)) {
            *text += &format!("# {line}\n");
        }
        let value = default.unwrap_or_else(|| example(section, &told.key, shape));
        *text += &format!("#{} = {value}\n", told.key);
    }
    for told in &rows {
        if let inner @ Shape::Table(..) = &keys[&*told.key] {
            write_table(text, section, &format!("{path}.{}", told.key), inner);
        }
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < WIDTH => *line = format!("{line} {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The schema, with a definition for each type.
fn schema() -> Value {
    let mut definitions = Map::new();
    let mut properties = Map::new();
    let mut named = Map::new();
    for (section, shape) in sections() {
        let schema = schema_of(&shape, &mut definitions);
        if section != "pool" {
            named.insert(section.to_owned(), json!({"type": "object", "additionalProperties": schema.clone()}));
        }
        properties.insert(section.to_owned(), schema);
    }
    let text = "The further resources of each kind, by name";
    let named = json!({"type": "object", "description": text, "properties": named, "additionalProperties": false});
    properties.insert("named".to_owned(), named);
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "resource-pool",
        "description": "The TOML that RESOURCE_POOL_CONFIG names. A program may know sections of further kinds.",
        "type": "object",
        "properties": properties,
        "definitions": definitions,
    })
}

fn schema_of(shape: &Shape, definitions: &mut Map<String, Value>) -> Value {
    match shape {
        Shape::Unknown => panic!("a value that was not asked for"),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Integer(None) => json!({"type": "integer"}),
        Shape::Integer(Some(least)) => json!({"type": "integer", "minimum": least}),
        Shape::Text => json!({"type": "string"}),
        Shape::OneOf(variants) => json!({"type": "string", "enum": variants}),
        Shape::List(inner) => json!({"type": "array", "items": schema_of(inner, definitions)}),
        Shape::Map(inner) => json!({"type": "object", "additionalProperties": schema_of(inner, definitions)}),
        Shape::Table(name, keys) => {
            let told: BTreeMap<_, _> = told(name).into_iter().map(|told| (told.key.clone(), told)).collect();
            let of_keys = keys.iter().map(|(key, shape)| {
                let mut schema = schema_of(shape, definitions);
                let told = &told[*key];
                // A reference stands alone in this version of JSON schema.
                if let (Some(schema), false) = (schema.as_object_mut(), matches!(shape, Shape::Table(..))) {
                    schema.insert("description".to_owned(), json!(told.text));
                    schema.extend(default(told, shape).map(|default| ("default".to_owned(), default)));
                }
                ((*key).to_owned(), schema)
            });
            let properties: Map<String, Value> = of_keys.collect();
            let definition = json!({"type": "object", "properties": properties, "additionalProperties": false});
            definitions.insert((*name).to_owned(), definition);
            json!({"$ref": format!("#/definitions/{name}")})
        }
    }
}

/// The same with all keys in order, whichever order a build of serde_json keeps.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let keys: BTreeMap<_, _> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(keys.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

#[test]
fn schema_and_sample_are_up_to_date() {
    let schema = serde_json::to_string_pretty(&sorted(schema())).unwrap() + "\n";
    for (name, text) in [("resource-pool.schema.json", schema), ("resource-pool.toml", sample())] {
        if std::env::var_os(WRITE).is_some() {
            fs::write(file(name), text).unwrap();
        } else {
            let is_up_to_date = fs::read_to_string(file(name)).unwrap() == text;
            assert!(is_up_to_date, "docs/{name} is out of date: run `cargo xtask schema`");
        }
    }
}

/// The kinds here are all that a pool has, and the reference has a row for each key.
#[test]
fn schema_has_every_section_and_every_key() {
    let config = Config::parse("").unwrap();
    let known: BTreeSet<_> = config.names().collect();
    let listed: BTreeSet<_> =
        sections().iter().map(|(section, _)| *section).filter(|section| *section != "pool").collect();
    assert_eq!(known, listed);
    fn check(shape: &Shape) {
        let Shape::Table(name, keys) = shape else { return };
        let rows = told(name);
        let told: BTreeSet<_> = rows.iter().map(|told| &*told.key).collect();
        assert_eq!(keys.keys().copied().collect::<BTreeSet<_>>(), told, "{name}");
        keys.values().for_each(check);
    }
    sections().iter().for_each(|(_, shape)| check(shape));
}

/// Each section of the sample has all of its keys, with values that the type takes, once all lines take effect.
#[test]
fn schema_sample_can_be_read() {
    let text = fs::read_to_string(file("resource-pool.toml")).unwrap();
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    let whole: toml::Table = text.lines().map(uncommented).collect::<Vec<_>>().join("\n").parse().unwrap();
    let sections = sections();
    for (section, shape) in &sections {
        let table = whole[*section].as_table().unwrap();
        assert_keys(section, table, shape);
        is_taken(section, table).unwrap_or_else(|error| panic!("[{section}]: {error}"));
    }
    assert_eq!(whole.len(), sections.len() + 1, "`named` is the only other one");
    let as_it_is = Config::parse(&text).unwrap();
    assert_eq!(format!("{as_it_is:?}"), format!("{:?}", Config::parse("").unwrap()), "it changes nothing");
}

fn assert_keys(path: &str, table: &toml::Table, shape: &Shape) {
    let Shape::Table(_, keys) = shape else { return };
    let has: BTreeSet<_> = table.keys().map(String::as_str).collect();
    assert_eq!(has, keys.keys().copied().collect::<BTreeSet<_>>(), "[{path}]");
    for (key, inner) in keys.iter().filter(|(_, inner)| matches!(inner, Shape::Table(..))) {
        assert_keys(&format!("{path}.{key}"), table[*key].as_table().unwrap(), inner);
    }
}
