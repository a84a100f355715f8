//! Collecting values: file, environment, flags.
//!
//! Belongs here: which setting each assignment means, and keeping the strongest with its origin.
//! Stays out: rules between settings (`check`).
//! Environment: `MESHD_` and the setting's name in capitals, with two underscores for the dot:
//! `mesh.key_file` is `MESHD_MESH__KEY_FILE`. Variables without two underscores are not ours: under
//! Kubernetes a service called `meshd` puts `MESHD_PORT` and its kin into every container.
//! Invariants: a value that another one overrides is checked all the same; no source is read twice.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::origin::{ConfigError, Origin};
use super::setting::{Kind, Value, is_name};
use super::table::{Section, nearest};
use super::{Config, ProductConfig, Products, SECTIONS};

/// What variables of ours begin with.
const ENV_PREFIX: &str = "MESHD_";

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag, for messages: `--seed`.
    pub flag: String,
    /// The setting: `mesh.seeds`.
    pub key: String,
    /// The value as text; lists by commas.
    pub value: String,
}

/// Where settings come from, all of it given: tests need no real environment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Variables of the environment; others than ours are passed over.
    pub env: Vec<(String, String)>,
    /// Flags, later ones stronger.
    pub flags: Vec<Flag>,
    /// File descriptors this process may open; `None` where that is not known.
    pub open_files_max: Option<u64>,
}

/// The values of all sources over the defaults, and what could not be read.
pub(super) fn collect(sources: &Sources) -> (Config, Vec<ConfigError>) {
    let mut collector = Collector { config: Config::default(), errors: Vec::new(), own_products: false };
    if let Some(path) = &sources.file {
        collector.file(path);
    }
    let mut env: Vec<_> = sources.env.iter().filter(|(name, _)| is_ours(name)).collect();
    env.sort();
    for (name, value) in env {
        let key = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        collector.assign(&key, Origin::Env(name.clone()), |kind| kind.parse_text(value));
    }
    for Flag { flag, key, value } in &sources.flags {
        let origin = Origin::Flag(flag.clone());
        collector.assign(key, origin, |kind| match kind {
            Kind::Secret => Err("a secret does not belong on a command line".into()),
            kind => kind.parse_text(value),
        });
    }
    (collector.config, collector.errors)
}

/// What is wrong with the text of a file, as far as it can be told line by line.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn errors_in(text: &str) -> Vec<ConfigError> {
    let mut collector = Collector { config: Config::default(), errors: Vec::new(), own_products: false };
    collector.text(Path::new("meshd.toml"), text);
    collector.errors
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(ENV_PREFIX).is_some_and(|rest| rest.contains("__"))
}

struct Collector {
    config: Config,
    errors: Vec<ConfigError>,
    /// Whether a source named a product: then the default one is not there unless it is named too.
    own_products: bool,
}

impl Collector {
    fn fail(&mut self, origin: Origin, key: &str, problem: impl Into<String>, allowed: Option<String>) {
        self.errors.push(ConfigError { origin, key: key.to_owned(), problem: problem.into(), allowed });
    }

    /// Puts one value into the setting called `key`.
    fn assign(&mut self, key: &str, origin: Origin, parse: impl FnOnce(&Kind) -> Result<Value, String>) {
        let Some((section, field)) = key.rsplit_once('.') else {
            return self.unknown(origin, key, None);
        };
        let product = section.strip_prefix("products.");
        if let Some(name) = product
            && (!is_name(name) || name.contains('.'))
        {
            return self.fail(origin, key, "not a product's name", Some(Kind::Name.allowed()));
        }
        let target: Option<&dyn Section> = match product {
            Some(_) => Some(&*EMPTY_PRODUCT),
            None => self.config.section(section),
        };
        let keys = target.map(Section::keys).unwrap_or_default();
        let Some(known) = keys.iter().find(|known| known.field == field) else {
            let similar = nearest(field, keys.iter().map(|k| k.field)).map(|f| format!("{section}.{f}"));
            return self.unknown(origin, key, similar);
        };
        match parse(&known.kind) {
            Ok(value) => {
                let target: Option<&mut dyn Section> = match product {
                    Some(name) => Some(self.product(name)),
                    None => self.config.section_mut(section),
                };
                if let Some(target) = target {
                    target.set(field, value);
                }
                self.config.origins.set(key, origin);
            }
            Err(problem) => self.fail(origin, key, problem, Some(known.kind.allowed())),
        }
    }

    fn product(&mut self, name: &str) -> &mut ProductConfig {
        if !self.own_products {
            self.own_products = true;
            self.config.products = Products(std::collections::BTreeMap::new());
        }
        self.config.products.0.entry(name.to_owned()).or_default()
    }

    fn unknown(&mut self, origin: Origin, key: &str, similar: Option<String>) {
        let section = key.split('.').next().unwrap_or(key);
        let similar = similar.or_else(|| {
            let sections = SECTIONS.into_iter().chain(["products"]);
            let known = sections.clone().any(|name| name == section);
            (!known).then(|| nearest(section, sections).map(|name| format!("{name}.…"))).flatten()
        });
        let problem = match similar {
            Some(similar) => format!("unknown setting, did you mean {similar}?"),
            None => "unknown setting, see docs/config.md".into(),
        };
        self.fail(origin, key, problem, None);
    }

    fn file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) => {
                let origin = Origin::Flag("--config".into());
                return self.fail(
                    origin,
                    &path.display().to_string(),
                    format!("cannot be read: {cause}"),
                    None,
                );
            }
        };
        self.text(path, &text);
    }

    /// The text of a file that lies at `path`.
    fn text(&mut self, path: &Path, text: &str) {
        let line =
            |at: usize| 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
        let (document, syntax) = DeTable::parse_recoverable(text);
        let mut broken_lines = Vec::new();
        for error in syntax {
            let span = error.span().unwrap_or(0..0);
            broken_lines.push(line(span.start));
            let origin = Origin::File(path.to_owned(), line(span.start));
            let near = text.get(span).unwrap_or("").trim();
            let near = if near.is_empty() { "the file".into() } else { format!("\"{near}\"") };
            self.fail(origin, &near, error.message(), None);
        }
        let mut pending = vec![(String::new(), document.into_inner())];
        while let Some((prefix, table)) = pending.pop() {
            for (name, value) in table {
                let key = if prefix.is_empty() {
                    name.get_ref().to_string()
                } else {
                    format!("{prefix}.{}", name.get_ref())
                };
                let at = line(name.span().start);
                if broken_lines.contains(&at) && !matches!(value.get_ref(), DeValue::Table(_)) {
                    continue; // What the parser made of it is a guess.
                }
                let origin = Origin::File(path.to_owned(), at);
                self.file_item(key, origin, value, &mut pending);
            }
        }
    }

    /// A table is looked into where one may stand: a section, `products`, a product.
    fn file_item<'t>(
        &mut self,
        key: String,
        origin: Origin,
        value: Spanned<DeValue<'t>>,
        pending: &mut Vec<(String, DeTable<'t>)>,
    ) {
        let product = key.strip_prefix("products.").filter(|name| !name.contains('.'));
        let holds_settings = SECTIONS.contains(&key.as_str()) || key == "products" || product.is_some();
        match value.into_inner() {
            DeValue::Table(table) if holds_settings => {
                if let Some(name) = product.filter(|name| is_name(name)) {
                    self.product(name);
                }
                pending.push((key, table));
            }
            DeValue::Table(_) if !key.contains('.') => self.unknown(origin, &key, None),
            _ if holds_settings => {
                self.fail(origin, &key, "a section, not a value", Some(format!("[{key}]")))
            }
            value => self.assign(&key, origin, |kind| kind.parse_toml(&value)),
        }
    }
}

/// What every product's section looks like.
static EMPTY_PRODUCT: std::sync::LazyLock<ProductConfig> = std::sync::LazyLock::new(ProductConfig::default);
