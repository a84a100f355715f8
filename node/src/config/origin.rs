//! Where a value comes from, and what is wrong with it.
//!
//! Belongs here: origins, configuration errors and their order. Stays out: finding them (`sources`,
//! `check`). Invariants: an error names where, which setting, what is wrong and what is allowed; it
//! never shows a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What set a value. Ordered as errors are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// This place in the file.
    File(PathBuf, usize),
    /// This variable of the environment.
    Env(String),
    /// This flag.
    Flag(String),
    /// The chosen timing preset.
    Preset(String),
    /// Nothing: the default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The origin of each setting that is not at its default, by full name (`mesh.listen`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value of `key` comes from.
    #[must_use]
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }
}

/// One thing that is wrong. The operator's to mend; nothing has been started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {key}: {problem}{}", self.allowed.as_ref().map(|a| format!(" (allowed: {a})")).unwrap_or_default())]
pub struct ConfigError {
    /// Where it was set.
    pub origin: Origin,
    /// The setting's full name.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub allowed: Option<String>,
}

/// Everything that is wrong, in order of place; prints one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
        Self(errors)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let line_end = if index + 1 == self.0.len() { "" } else { "\n" };
            write!(f, "{error}{line_end}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
