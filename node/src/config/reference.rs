//! Settings as people and tools read them.
//!
//! Belongs here: `--check-config`'s text, `meshctl config`'s JSON, `docs/config.md`.
//! Stays out: the settings themselves. Invariants: secrets show as `***`; every setting appears.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Config, Key, ProductConfig, SECTIONS, Section, live};

/// One setting with its value: a line of `meshctl config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its full name.
    pub key: String,
    /// Its value as text; `***` for a secret that is set.
    pub value: String,
    /// What set it.
    pub origin: String,
    /// Whether a change needs a restart of the node.
    pub restart: bool,
}

impl Config {
    /// Every setting with value and origin.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let mut lines = Vec::new();
        for name in SECTIONS {
            if let Some(section) = self.section(name) {
                self.show_section(name, section, &mut lines);
            }
        }
        for (name, product) in &self.products.0 {
            self.show_section(&format!("products.{name}"), product, &mut lines);
        }
        lines
    }

    fn show_section(&self, name: &str, section: &dyn Section, lines: &mut Vec<Shown>) {
        for Key { field, .. } in section.keys() {
            let key = format!("{name}.{field}");
            let value = section.value(field).map(|value| value.to_string()).unwrap_or_default();
            let origin = self.origins.of(&key).to_string();
            let restart = !live::is_live(&key);
            lines.push(Shown { key, value, origin, restart });
        }
    }

    /// The text of `--check-config`: one setting a line, with its origin.
    #[must_use]
    pub fn shown_as_text(&self) -> String {
        let lines = self.shown();
        let width = |column: fn(&Shown) -> usize| lines.iter().map(column).max().unwrap_or(0);
        let (keys, values) = (width(|l| l.key.len()), width(|l| l.value.len()).min(40));
        let mut text = String::new();
        for Shown { key, value, origin, restart } in &lines {
            let value = if value.is_empty() { "\"\"" } else { value };
            let restart = if *restart { "restart" } else { "live" };
            let _ = writeln!(text, "{key:keys$}  {value:values$}  {restart}  {origin}");
        }
        text
    }
}

const PREFACE: &str = "\
# Settings

<!-- Generated from node/src/config.rs. To write it anew: MESHD_WRITE_DOCS=1 cargo test -p meshd reference -->

A value comes from, weaker first: its default, the file given by `--config` (TOML), the environment, a flag.
`meshd --check-config` and `meshctl config` print every value with its origin. Settings marked as *live*
are taken over by `meshctl reload` and by SIGHUP (a file with anything wrong in it changes nothing, and says why);
other changes need a restart.

- Environment: `MESHD_`, then the name in capitals with **two** underscores for the dot: `mesh.key_file` is
  `MESHD_MESH__KEY_FILE`. Lists are separated by commas. Variables that have no two underscores are not read (under
  Kubernetes a service called `meshd` sets `MESHD_PORT` and others).
- Flags: `--set mesh.key_file=/etc/meshd/key` for every setting but secrets; shorter ones for the usual: `meshd --help`.
- Times need a unit: `250ms`, `25s`, `2m`, `24h`. Sizes too: `512B`, `64KiB`, `1MB`.
- Whatever is wrong is told at once, one line each, with file and line; exit code 2, and nothing is started.
- Files with secrets must not be open to all users of the host (`chmod 600`).
";

/// The text of `docs/config.md`.
#[must_use]
pub fn as_markdown() -> String {
    let config = Config::default();
    let mut text = PREFACE.to_owned();
    for name in SECTIONS {
        if let Some(section) = config.section(name) {
            markdown_section(&mut text, name, section);
        }
    }
    markdown_section(&mut text, "products.NAME", &ProductConfig::default());
    text
}

fn markdown_section(text: &mut String, name: &str, section: &dyn Section) {
    let _ = write!(text, "\n## [{name}]\n\n{}\n", joined(section.about()));
    for Key { field, kind, doc } in section.keys() {
        let value = section.value(field).map(|value| value.to_string()).unwrap_or_default();
        let value = if value.is_empty() { "\"\"".to_owned() } else { value };
        let allowed = kind.allowed();
        let live = if live::is_live(&format!("{name}.{field}")) { "- live\n" } else { "" };
        let _ = write!(
            text,
            "\n### `{name}.{field}`\n\n{}\n\n- default: `{value}`\n- allowed: {allowed}\n{live}",
            joined(doc)
        );
    }
}

/// The lines of a doc comment as one paragraph.
fn joined(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}
