//! Numbers for Prometheus, read from their owners when they are asked for.
//!
//! Belongs here: the text format; the seam to whoever has numbers.
//! Stays out: the numbers. There is no registry and no global: a scrape asks each [`Source`].
//! Invariants: every family has its help and type once; labels come from small closed sets.
//! Source: Prometheus text exposition format 0.0.4.

use std::fmt::{Display, Write as _};

/// `Content-Type` of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Something with numbers.
pub trait Source: Send + Sync {
    /// Writes its families. Must not block.
    fn write(&self, out: &mut Exposition);
}

/// What a family's numbers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until the process ends; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The text of one scrape, in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Begins a family; its samples follow.
    ///
    /// # Panics
    /// In debug builds when the name breaks the rules of STYLE §7.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        debug_assert!(name.starts_with("meshd_"), "{name}");
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.family = name;
    }

    /// One number of the family begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.family);
        for (index, (name, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{name}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    /// A family of one number without labels.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut out = Exposition::default();
        out.single("meshd_sessions", Kind::Gauge, "Sessions.\nNot counted: none.", 3);
        out.family("meshd_links_total", Kind::Counter, "Links.");
        out.sample(&[("peer", "a\"b\\c"), ("up", "1")], 1.5);
        let expected = "# HELP meshd_sessions Sessions.\\nNot counted: none.\n# TYPE meshd_sessions gauge\n\
                        meshd_sessions 3\n# HELP meshd_links_total Links.\n# TYPE meshd_links_total counter\n\
                        meshd_links_total{peer=\"a\\\"b\\\\c\",up=\"1\"} 1.5\n";
        assert_eq!(out.into_text(), expected);
    }
}
