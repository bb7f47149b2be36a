//! The pieces that the fuzzer puts together: texts, URLs, TOML documents and environments.

use std::fmt::Write;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

const OPTIONS: &str = include_str!("../../docs/reference/options.md");

pub const KINDS: [&str; 4] = ["mongo", "rabbitmq", "clickhouse", "redis"];

/// The further kinds that the program may be built with. No text is made for them, but a broken one may name them.
pub const FURTHER_KINDS: [&str; 8] = ["postgres", "mysql", "sqlite", "http", "llm", "chroma", "milvus", "elastic"];

/// Picks an item from a list of any length.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Pick(u8);

impl Pick {
    pub fn of<T>(self, list: &[T]) -> &T {
        &list[usize::from(self.0) % list.len()]
    }
}

const WORDS: [&str; 56] = [
    "",
    "a",
    "x",
    "0",
    "1",
    "7",
    "27017",
    "5672",
    "8123",
    "6379",
    "9000",
    "65535",
    "65536",
    "-1",
    "1e3",
    "00",
    "18446744073709551615",
    "9223372036854775808",
    "true",
    "localhost",
    "127.0.0.1",
    "::1",
    "[::1]",
    "[",
    "]",
    "redis",
    "guest",
    "default",
    "admin",
    "far",
    "%",
    "%4",
    "%40",
    "%00",
    "%ff",
    "%a\u{e9}",
    "@",
    ":",
    "/",
    "//",
    "?",
    "#",
    "&",
    "=",
    ",",
    "\\",
    "\"",
    "'",
    " ",
    "\t",
    "\n",
    "\0",
    "\u{e9}",
    "\u{1f980}",
    "://",
    ".sock",
];

#[derive(Arbitrary, Debug, Clone)]
pub enum Text {
    Word(Pick),
    Junk(String),
    Two(Pick, Pick),
    Wrapped(Pick, String, Pick),
}

impl Text {
    pub fn show(&self) -> String {
        match self {
            Text::Word(word) => (*word.of(&WORDS)).to_owned(),
            Text::Junk(text) => text.clone(),
            Text::Two(first, second) => format!("{}{}", first.of(&WORDS), second.of(&WORDS)),
            Text::Wrapped(first, text, second) => format!("{}{text}{}", first.of(&WORDS), second.of(&WORDS)),
        }
    }
}

/// The text with every non-alphanumeric byte percent-encoded.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[derive(Arbitrary, Debug, Clone)]
pub struct Part {
    text: Text,
    raw: bool,
}

impl Part {
    pub fn show(&self) -> String {
        if self.raw { self.text.show() } else { encoded(&self.text.show()) }
    }
}

#[derive(Arbitrary, Debug, Clone)]
pub enum Host {
    Loopback,
    Usual(Pick),
    Any(Text),
}

#[derive(Arbitrary, Debug, Clone)]
pub struct Url {
    scheme: Scheme,
    user: Option<Part>,
    password: Option<Part>,
    host: Host,
    port: Option<Text>,
    path: Option<Part>,
    query: Vec<(Parameter, Part)>,
    fragment: Option<Part>,
}

#[derive(Arbitrary, Debug, Clone)]
enum Scheme {
    OfKind,
    Other(Pick),
    Any(Text),
}

#[derive(Arbitrary, Debug, Clone)]
enum Parameter {
    Known(Pick),
    Any(Text),
}

const SCHEMES: [&str; 14] = [
    "mongodb://",
    "mongodb+srv://",
    "amqp://",
    "amqps://",
    "http://",
    "https://",
    "clickhouse://",
    "tcp://",
    "redis://",
    "rediss://",
    "unix://",
    "redis:",
    "//",
    "",
];
const HOSTS: [&str; 10] =
    ["localhost", "127.0.0.1", "[::1]", "[::1", "a,b:1", "a:1,b", "%2ftmp%2fx.sock", "x.sock", "H\u{e9}", "1.2"];
const PARAMETERS: [&str; 20] = [
    "heartbeat",
    "frame_max",
    "channel_max",
    "user",
    "password",
    "database",
    "max_threads",
    "maxPoolSize",
    "minPoolSize",
    "replicaSet",
    "authSource",
    "authMechanism",
    "authMechanismProperties",
    "waitQueueTimeoutMS",
    "directConnection",
    "tls",
    "tlsCAFile",
    "readPreference",
    "heartbeatFrequencyMS",
    "db",
];

/// The scheme under which a kind is usually reached.
pub fn scheme(kind: &str) -> &'static str {
    match kind {
        "mongo" => "mongodb://",
        "rabbitmq" => "amqp://",
        "clickhouse" => "http://",
        _ => "redis://",
    }
}

impl Url {
    pub fn show(&self, kind: &str) -> String {
        let mut url = match &self.scheme {
            Scheme::OfKind => scheme(kind).to_owned(),
            Scheme::Other(scheme) => (*scheme.of(&SCHEMES)).to_owned(),
            Scheme::Any(text) => text.show(),
        };
        if let Some(user) = &self.user {
            url.push_str(&user.show());
        }
        if let Some(password) = &self.password {
            url.push_str(&format!(":{}", password.show()));
        }
        if self.user.is_some() || self.password.is_some() {
            url.push('@');
        }
        url.push_str(&match &self.host {
            Host::Loopback => "127.0.0.1".to_owned(),
            Host::Usual(host) => (*host.of(&HOSTS)).to_owned(),
            Host::Any(text) => text.show(),
        });
        for (sign, part) in [(':', self.port.as_ref().map(Text::show)), ('/', self.path.as_ref().map(Part::show))] {
            if let Some(part) = part {
                url.push(sign);
                url.push_str(&part);
            }
        }
        for (n, (name, value)) in self.query.iter().enumerate() {
            let name = match name {
                Parameter::Known(name) => (*name.of(&PARAMETERS)).to_owned(),
                Parameter::Any(text) => text.show(),
            };
            let _ = write!(url, "{}{name}={}", if n == 0 { '?' } else { '&' }, value.show());
        }
        if let Some(fragment) = &self.fragment {
            let _ = write!(url, "#{}", fragment.show());
        }
        url
    }
}

#[derive(Arbitrary, Debug, Clone)]
pub enum Document {
    Text(String),
    Entries(Vec<Entry>),
}

#[derive(Arbitrary, Debug, Clone)]
pub struct Entry {
    section: Section,
    key: Key,
    value: Value,
}

#[derive(Arbitrary, Debug, Clone)]
enum Section {
    Known(Pick),
    Named(Pick, Name),
    Any(Text),
}

#[derive(Arbitrary, Debug, Clone)]
enum Key {
    OfSection(Pick),
    Known(Pick),
    Any(Text),
}

#[derive(Arbitrary, Debug, Clone)]
enum Value {
    Number(i64),
    Small(u16),
    Float(f64),
    Bool(bool),
    Text(Text),
    Url(Url),
    Texts(Vec<Text>),
    Table(Text, Text),
    Raw(Text),
}

/// A resource's name.
#[derive(Arbitrary, Debug, Clone)]
pub enum Name {
    Known(Pick),
    Any(Text),
}

impl Name {
    pub fn show(&self) -> String {
        match self {
            Name::Known(name) => (*name.of(&["far", "near", "mongo", "redis", "rabbitmq", "clickhouse"])).to_owned(),
            Name::Any(text) => text.show(),
        }
    }
}

/// Every section in the tables of the guide, with its keys.
static SECTIONS: LazyLock<Vec<(String, Vec<String>)>> = LazyLock::new(|| {
    let tables = OPTIONS.split("\n#### `").skip(1);
    let table = |table: &str| {
        let section = table.split("`[").nth(1)?.split(']').next()?.to_owned();
        let rows = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let rows = rows.take_while(|line| line.starts_with('|'));
        let key = |row: &str| Some(row.split(" | ").nth(1)?.trim_matches(['`', ' ', '|']).to_owned());
        Some((section, rows.filter_map(key).collect()))
    };
    tables.filter_map(table).collect()
});

/// Every environment variable that the guide names.
pub static VARIABLES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let section = OPTIONS.split("## Environment").nth(1).unwrap_or_default().split("\n## ").next().unwrap_or_default();
    let names = section.split('`').skip(1).step_by(2);
    let is_name = |name: &&str| name.len() > 5 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    names.filter(is_name).map(str::to_owned).collect()
});

impl Document {
    /// The names of the further resources in the document.
    pub fn names(&self) -> Vec<String> {
        let entries = match self {
            Document::Text(_) => &[][..],
            Document::Entries(entries) => entries,
        };
        let name = |entry: &Entry| match &entry.section {
            Section::Named(_, name) => Some(name.show()),
            _ => None,
        };
        entries.iter().filter_map(name).collect()
    }

    pub fn show(&self) -> String {
        let entries = match self {
            Document::Text(text) => return text.clone(),
            Document::Entries(entries) => entries,
        };
        let mut text = String::new();
        for Entry { section, key, value } in entries {
            let (section, keys) = match section {
                Section::Known(section) => {
                    let (section, keys) = section.of(&SECTIONS);
                    (section.clone(), &keys[..])
                }
                Section::Named(kind, name) => {
                    let kind = kind.of(&KINDS);
                    let keys = SECTIONS.iter().find(|(section, _)| section == kind).map_or(&[][..], |(_, keys)| keys);
                    (format!("named.{kind}.{}", quoted(&name.show())), keys)
                }
                Section::Any(section) => (quoted(&section.show()), &[][..]),
            };
            let kind = KINDS.iter().find(|kind| section.contains(**kind)).unwrap_or(&"redis");
            let all = &SECTIONS[..];
            let key = match key {
                Key::OfSection(key) if !keys.is_empty() => key.of(keys).clone(),
                Key::OfSection(key) | Key::Known(key) => {
                    let (_, keys) = key.of(all);
                    key.of(keys).clone()
                }
                Key::Any(text) => quoted(&text.show()),
            };
            // Dotted keys let a section appear more than once.
            let _ = writeln!(text, "{section}.{key} = {}", value.show(kind));
        }
        text
    }
}

impl Value {
    fn show(&self, kind: &str) -> String {
        match self {
            Value::Number(number) => number.to_string(),
            Value::Small(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Bool(truth) => truth.to_string(),
            Value::Text(text) => quoted(&text.show()),
            Value::Url(url) => quoted(&url.show(kind)),
            Value::Texts(texts) => {
                format!("[{}]", texts.iter().map(|text| quoted(&text.show())).collect::<Vec<_>>().join(", "))
            }
            Value::Table(key, value) => format!("{{ {} = {} }}", quoted(&key.show()), quoted(&value.show())),
            Value::Raw(text) => text.show(),
        }
    }
}

/// The text as a TOML string.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            ' ' | '!' | '#'..='[' | ']'..='~' => quoted.push(c),
            _ => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[derive(Arbitrary, Debug, Clone)]
pub struct Variable {
    name: VariableName,
    value: VariableValue,
}

#[derive(Arbitrary, Debug, Clone)]
enum VariableName {
    Known(Pick),
    Any(Text),
}

#[derive(Arbitrary, Debug, Clone)]
enum VariableValue {
    Text(Text),
    Number(u64),
    Url(Url),
}

impl Variable {
    pub fn show(&self) -> (String, String) {
        let name = match &self.name {
            VariableName::Known(name) => name.of(&VARIABLES).clone(),
            VariableName::Any(text) => text.show(),
        };
        let kind = match &*name {
            name if name.starts_with("MONGO") => "mongo",
            name if name.starts_with("AMQP") => "rabbitmq",
            name if name.starts_with("CLICKHOUSE") => "clickhouse",
            _ => "redis",
        };
        let value = match &self.value {
            VariableValue::Text(text) => text.show(),
            VariableValue::Number(number) => number.to_string(),
            VariableValue::Url(url) => url.show(kind),
        };
        (name, value)
    }
}
