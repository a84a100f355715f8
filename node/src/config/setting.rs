//! Values of settings: their kinds, how they are written, what is allowed.
//!
//! Belongs here: parsing one value from a TOML item or from text, printing it back.
//! Stays out: which settings there are (`config`), where values come from (`sources`).
//! Units: durations as `250ms`, `25s`, `2m`, `24h`; sizes as `512B`, `64KiB`, `1MB`; never bare numbers.
//! Invariants: what [`Value`] prints, `Kind::parse_text` reads back as the same value.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use mesh_proto::socketio::NAMESPACE_BYTES_MAX;
use toml::de::DeValue;

use super::product::{UidSource, is_host, is_path, is_token, token_place};

/// One value, as the file, the environment or a flag gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, a path or a word; empty means "not set" where a setting may be left out.
    Text(String),
    /// Yes or no.
    Bool(bool),
    /// A count.
    Count(u64),
    /// Bytes.
    Size(u64),
    /// A time span.
    Time(Duration),
    /// An address to bind.
    Address(SocketAddr),
    /// Several texts.
    List(Vec<String>),
    /// A secret: never printed.
    Secret(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Size(bytes) => f.write_str(&show_size(*bytes)),
            Self::Time(time) => f.write_str(&show_time(*time)),
            Self::Address(address) => write!(f, "{address}"),
            Self::List(items) => f.write_str(&items.join(",")),
            Self::Secret(secret) => f.write_str(if secret.is_empty() { "" } else { "***" }),
        }
    }
}

/// What a setting takes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Any text; empty where the setting may be left out.
    Text,
    /// A name: letters, digits, `-`, `_`, `.`; at most 64.
    Name,
    /// A path of a file; empty when there is none.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// A number in this range.
    Count(RangeInclusive<u64>),
    /// A size in this range of bytes.
    Size(RangeInclusive<u64>),
    /// A time span in this range of microseconds.
    Time(RangeInclusive<Duration>),
    /// `IP:PORT` to bind; port 0 takes a free one.
    Address,
    /// `IP:PORT` or empty.
    AddressOrNone,
    /// `HOST:PORT`, several.
    Peers,
    /// Socket.IO namespaces: names that begin with `/`, or beginnings of names that end with `*`.
    Namespaces,
    /// Several texts.
    List,
    /// What handles a product.
    ProductKind,
    /// Host names, several; `*.` may stand before one.
    Hosts,
    /// Beginnings of paths, several.
    Paths,
    /// Where uids come from, in order; one may stand alone.
    UidSources,
    /// Where tokens may stand, in order; one may stand alone.
    TokenPlaces,
    /// Names of headers or query parameters, several.
    Tokens,
    /// The name of a header, a cookie or a query parameter; empty when there is none.
    TokenOrNone,
    /// A secret; taken from the environment only.
    Secret,
}

impl Kind {
    /// The allowed values, in words: part of every error and of the reference.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Name => "1 to 64 of a-z A-Z 0-9 - _ .".into(),
            Self::Path => "a path, or \"\" for none".into(),
            Self::Choice(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", "),
            Self::Bool => "true, false".into(),
            Self::Count(range) => format!("{} to {}", range.start(), range.end()),
            Self::Size(range) => {
                format!("{} to {}", show_size(*range.start()), show_size(*range.end()))
            }
            Self::Time(range) => format!("{} to {}", show_time(*range.start()), show_time(*range.end())),
            Self::Address => "IP:PORT, as 127.0.0.1:4080 or [::1]:4080".into(),
            Self::AddressOrNone => "IP:PORT, or \"\" for none".into(),
            Self::Peers => "a list of HOST:PORT".into(),
            Self::Namespaces => {
                format!(
                    "a list of names as /chat, or /team-* for all that begin so; {NAMESPACE_BYTES_MAX} bytes each"
                )
            }
            Self::List => "a list of texts".into(),
            Self::ProductKind => "\"rooms\", \"proxy\"".into(),
            Self::Hosts => "a list of names as app.example.com or *.example.com".into(),
            Self::Paths => "a list of paths as /chat".into(),
            Self::UidSources => {
                "\"auto\", or a list of jwt, query:NAME, cookie:NAME, header:NAME, auth:NAME, hook, anonymous"
                    .into()
            }
            Self::TokenPlaces => "a list of header, query:NAME, cookie:NAME, auth:NAME".into(),
            Self::Tokens => "a list of names".into(),
            Self::TokenOrNone => "1 to 64 of a-z A-Z 0-9 - _ . and few others, or \"\" for none".into(),
            Self::Secret => "from the environment only".into(),
        }
    }

    /// Reads a value of the file.
    ///
    /// # Errors
    /// What is wrong with it, without the allowed values.
    pub(super) fn parse_toml(&self, value: &DeValue<'_>) -> Result<Value, String> {
        match (self, value) {
            (Self::Secret, _) => Err("a secret does not belong in this file".into()),
            (Self::Bool, DeValue::Boolean(yes)) => Ok(Value::Bool(*yes)),
            (Self::Count(_), DeValue::Integer(number)) => self.parse_text(&number.to_string()),
            (Self::Size(_), DeValue::Integer(number)) => {
                Err(format!("{number} has no unit: write \"{number}B\" or \"{number}KiB\""))
            }
            (Self::Time(_), DeValue::Integer(number)) => {
                Err(format!("{number} has no unit: write \"{number}s\" or \"{number}ms\""))
            }
            (Self::UidSources | Self::TokenPlaces, DeValue::String(text)) => {
                self.check_list(vec![text.to_string()])
            }
            (list, DeValue::Array(items)) if list.is_list() => {
                let texts = items.iter().map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    other => Err(format!("expected texts in the list, found {}", article(other))),
                });
                self.check_list(texts.collect::<Result<_, _>>()?)
            }
            (kind, other) if kind.is_list() || matches!(kind, Self::Bool | Self::Count(_)) => {
                Err(format!("expected {}, found {}", self.noun(), article(other)))
            }
            (_, DeValue::String(text)) => self.parse_text(text),
            (_, other) => Err(format!("expected {}, found {}", self.noun(), article(other))),
        }
    }

    /// Reads a value of the environment or of a flag; lists are separated by commas.
    ///
    /// # Errors
    /// What is wrong with it, without the allowed values.
    pub fn parse_text(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text | Self::Path => Ok(Value::Text(text.to_owned())),
            Self::Name => parse_name(text),
            Self::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Self::Choice(_) => Err(format!("\"{text}\" is not one of the words")),
            Self::Bool => text.parse().map(Value::Bool).map_err(|_| format!("\"{text}\" is neither")),
            Self::Count(range) => {
                let number = text.replace('_', "");
                let number: i128 = number.parse().map_err(|_| format!("\"{text}\" is not a whole number"))?;
                let count = u64::try_from(number).ok().filter(|n| range.contains(n));
                count.map(Value::Count).ok_or_else(|| format!("{number} is out of range"))
            }
            Self::Size(range) => {
                let bytes = parse_size(text)?;
                if range.contains(&bytes) {
                    Ok(Value::Size(bytes))
                } else {
                    Err(format!("{text} is out of range"))
                }
            }
            Self::Time(range) => {
                let time = parse_time(text)?;
                if range.contains(&time) {
                    Ok(Value::Time(time))
                } else {
                    Err(format!("{text} is out of range"))
                }
            }
            Self::Address => text
                .parse()
                .map(Value::Address)
                .map_err(|_| format!("\"{text}\" is not an address with a port")),
            Self::AddressOrNone if text.is_empty() => Ok(Value::Text(String::new())),
            Self::AddressOrNone => match text.parse::<SocketAddr>() {
                Ok(address) => Ok(Value::Text(address.to_string())),
                Err(_) => Err(format!("\"{text}\" is not an address with a port")),
            },
            Self::ProductKind if matches!(text, "rooms" | "proxy") => Ok(Value::Text(text.to_owned())),
            Self::ProductKind if text == "app" => Err("\"app\" is reserved for workers and webhooks, which \
                 this version has not: write handlers in Rust and embed the node (docs/handlers.md)"
                .into()),
            Self::ProductKind => Err(format!("\"{text}\" is not one of the words")),
            Self::TokenOrNone if text.is_empty() || is_token(text) => Ok(Value::Text(text.to_owned())),
            Self::TokenOrNone => Err(format!("\"{}\" is not a name", text.escape_debug())),
            Self::Secret => Ok(Value::Secret(text.trim().to_owned())),
            // Lists.
            _ => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                self.check_list(items.map(str::to_owned).collect())
            }
        }
    }

    fn check_list(&self, items: Vec<String>) -> Result<Value, String> {
        if matches!(self, Self::Peers)
            && let Some(bad) = items.iter().find(|item| !is_host_and_port(item))
        {
            return Err(format!("\"{bad}\" is not HOST:PORT"));
        }
        if matches!(self, Self::Namespaces) {
            if let Some(bad) = items.iter().find(|item| !is_namespace(item)) {
                return Err(format!("\"{bad}\" is no namespace"));
            }
            if items.is_empty() {
                return Err("a product without a namespace lets nobody in".into());
            }
        }
        let noun = match self {
            Self::Hosts => "host name",
            Self::Paths => "path from its root, in whole segments",
            Self::TokenPlaces => "place of a token",
            Self::Tokens => "name",
            _ => "source of uids",
        };
        let fits = |item: &String| match self {
            Self::Hosts => is_host(item),
            Self::Paths => is_path(item),
            Self::TokenPlaces => token_place(item).is_some(),
            Self::Tokens => is_token(item),
            Self::UidSources => UidSource::parse(item).is_some() || items == ["auto"],
            _ => true,
        };
        if let Some(bad) = items.iter().find(|item| !fits(item)) {
            return Err(format!("\"{}\" is no {noun}", bad.escape_debug()));
        }
        Ok(Value::List(items))
    }

    fn is_list(&self) -> bool {
        use Kind::{Hosts, List, Namespaces, Paths, Peers, TokenPlaces, Tokens, UidSources};
        matches!(self, List | Peers | Namespaces | Hosts | Paths | UidSources | TokenPlaces | Tokens)
    }

    fn noun(&self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Count(_) => "a whole number",
            list if list.is_list() => "a list",
            Self::Time(_) => "a time as \"25s\"",
            Self::Size(_) => "a size as \"64KiB\"",
            _ => "a text",
        }
    }
}

/// What a client may call a namespace, or the beginning of that and `*`.
fn is_namespace(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    let forbidden = |c: char| matches!(c, ',' | '?' | '*') || c.is_control();
    name.starts_with('/') && name.len() <= NAMESPACE_BYTES_MAX && !name.contains(forbidden)
}

/// A type that a setting's field may have.
pub(super) trait Setting {
    /// Its value.
    fn to_value(&self) -> Value;
    /// Takes a value that its [`Kind`] has accepted; another kind leaves it as it is.
    fn accept(&mut self, value: Value);
}

impl Setting for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn accept(&mut self, value: Value) {
        *self = value.to_string();
    }
}

impl Setting for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
    fn accept(&mut self, value: Value) {
        if let Value::Bool(yes) = value {
            *self = yes;
        }
    }
}

impl Setting for SocketAddr {
    fn to_value(&self) -> Value {
        Value::Address(*self)
    }
    fn accept(&mut self, value: Value) {
        if let Value::Address(address) = value {
            *self = address;
        }
    }
}

impl Setting for Option<SocketAddr> {
    fn to_value(&self) -> Value {
        Value::Text(self.map(|address| address.to_string()).unwrap_or_default())
    }
    fn accept(&mut self, value: Value) {
        *self = value.to_string().parse().ok();
    }
}

impl Setting for Option<std::path::PathBuf> {
    fn to_value(&self) -> Value {
        Value::Text(self.as_ref().map(|path| path.display().to_string()).unwrap_or_default())
    }
    fn accept(&mut self, value: Value) {
        let text = value.to_string();
        *self = (!text.is_empty()).then(|| text.into());
    }
}

impl Setting for Vec<String> {
    fn to_value(&self) -> Value {
        Value::List(self.clone())
    }
    fn accept(&mut self, value: Value) {
        if let Value::List(items) = value {
            *self = items;
        }
    }
}

impl Setting for Duration {
    fn to_value(&self) -> Value {
        Value::Time(*self)
    }
    fn accept(&mut self, value: Value) {
        if let Value::Time(time) = value {
            *self = time;
        }
    }
}

/// A secret that prints as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Takes the text in.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the code that needs it, never for logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "SecretText()" } else { "SecretText(***)" })
    }
}

impl Setting for SecretText {
    fn to_value(&self) -> Value {
        Value::Secret(self.0.clone())
    }
    fn accept(&mut self, value: Value) {
        if let Value::Secret(secret) = value {
            self.0 = secret;
        }
    }
}

/// Whole numbers hold counts and sizes alike; their [`Kind`] tells which.
macro_rules! whole_numbers {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            fn to_value(&self) -> Value {
                Value::Count(u64::try_from(*self).unwrap_or(u64::MAX))
            }
            fn accept(&mut self, value: Value) {
                if let Value::Count(number) | Value::Size(number) = value {
                    *self = <$ty>::try_from(number).unwrap_or(<$ty>::MAX);
                }
            }
        }
    )*};
}
whole_numbers!(u8, u16, u32, u64, usize);

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const TIMES: [(&str, u64); 5] =
    [("ms", 1_000), ("us", 1), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)];

fn parse_size(text: &str) -> Result<u64, String> {
    parse_unit(text, &SIZES).ok_or_else(|| missing_unit(text, "size", "64KiB"))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    parse_unit(text, &TIMES).map(Duration::from_micros).ok_or_else(|| missing_unit(text, "time", "25s"))
}

fn parse_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().replace('_', "").parse().ok()?;
        number.checked_mul(*factor)
    })
}

fn missing_unit(text: &str, what: &str, example: &str) -> String {
    if text.parse::<u64>().is_ok() {
        format!("{text} has no unit: write it as \"{example}\"")
    } else {
        format!("\"{text}\" is not a {what} as \"{example}\"")
    }
}

fn show_size(bytes: u64) -> String {
    let unit = SIZES.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| "0B".into(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

fn show_time(time: Duration) -> String {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let large_first = [TIMES[2], TIMES[3], TIMES[4], TIMES[0], TIMES[1]];
    let unit = large_first.into_iter().find(|(_, factor)| micros != 0 && micros.is_multiple_of(*factor));
    unit.map_or_else(|| "0s".into(), |(unit, factor)| format!("{}{unit}", micros / factor))
}

fn parse_name(text: &str) -> Result<Value, String> {
    if is_name(text) {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(format!("\"{}\" is not a name", text.escape_debug()))
    }
}

/// Whether `text` may name a node, a cluster, a zone or a product.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn article(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(yes) => format!("{yes}"),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_print_as_they_are_read() {
        for text in ["250ms", "25s", "2m", "24h", "35ms", "7us", "0s"] {
            assert_eq!(show_time(parse_time(text).unwrap()), text);
        }
        for text in ["64KiB", "1MB", "1GiB", "17B", "0B", "3MiB"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_time("90 s"), Ok(Duration::from_secs(90)));
        assert!(parse_size("99999999999999GiB").is_err());
    }

    #[test]
    fn a_number_without_a_unit_says_so() {
        assert_eq!(parse_time("25").unwrap_err(), "25 has no unit: write it as \"25s\"");
        assert_eq!(parse_size("lots").unwrap_err(), "\"lots\" is not a size as \"64KiB\"");
    }

    #[test]
    fn peers_need_host_and_port() {
        for good in ["127.0.0.1:1", "[::1]:4083", "mesh.internal:4083", "a_b:9"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["mesh.internal", ":4083", "a:0", "::1:4083", "a b:1", "a:99999"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
