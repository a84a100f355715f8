//! The table of settings: one declaration per field drives everything else.
//!
//! Belongs here: what is known of each setting, and the macro that declares a section.
//! Stays out: the settings themselves (`config`), reading (`sources`), printing (`reference`).
//! Invariants: a field's rustdoc, its default, its range, `--check-config`, `meshctl config` and
//! `docs/config.md` come from the same lines, so they cannot disagree.

use super::setting::{Kind, Value};

/// One setting of a section.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name within the section.
    pub field: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its documentation, as on the field.
    pub doc: &'static str,
}

/// A group of settings: `[mesh]`, or one `[products.NAME]`.
pub trait Section {
    /// What the group is about.
    fn about(&self) -> &'static str;
    /// Its settings, in order of documentation.
    fn keys(&self) -> Vec<Key>;
    /// The value of a setting; `None` when there is no such field.
    fn value(&self, field: &str) -> Option<Value>;
    /// Takes a value that the setting's [`Kind`] has accepted.
    fn set(&mut self, field: &str, value: Value);
}

/// Counts and sizes share their Rust types: the kind says which one it is.
pub(super) fn as_kind(kind: &Kind, value: Value) -> Value {
    match (kind, value) {
        (Kind::Size(_), Value::Count(bytes)) => Value::Size(bytes),
        (_, value) => value,
    }
}

/// Declares a section: the struct with its docs and defaults, and its part of the table. The form
/// with `for` describes a struct that lives elsewhere.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $Section:ident {
            $( $(#[doc = $doc:literal])* $field:ident: $ty:ty = $default:expr, $kind:expr; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Section {
            $( $(#[doc = $doc])* pub $field: $ty, )*
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        section! {
            $(#[doc = $about])*
            for $Section {
                $( $(#[doc = $doc])* $field, $kind; )*
            }
        }
    };
    (
        $(#[doc = $about:literal])*
        for $Section:ident {
            $( $(#[doc = $doc:literal])* $field:ident, $kind:expr; )*
        }
    ) => {
        impl $crate::config::table::Section for $Section {
            fn about(&self) -> &'static str {
                concat!($($about, "\n"),*)
            }

            fn keys(&self) -> Vec<$crate::config::table::Key> {
                vec![$( $crate::config::table::Key {
                    field: stringify!($field),
                    kind: $kind,
                    doc: concat!($($doc, "\n"),*),
                } ),*]
            }

            fn value(&self, field: &str) -> Option<$crate::config::setting::Value> {
                use $crate::config::setting::Setting as _;
                match field {
                    $( stringify!($field) => {
                        Some($crate::config::table::as_kind(&$kind, self.$field.to_value()))
                    } )*
                    _ => None,
                }
            }

            fn set(&mut self, field: &str, value: $crate::config::setting::Value) {
                use $crate::config::setting::Setting as _;
                match field {
                    $( stringify!($field) => self.$field.accept(value), )*
                    _ => {}
                }
            }
        }
    };
}
pub(super) use section;

/// The nearest of `names` to a name that does not exist: at most a third of it may be wrong.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = names.map(|name| (distance(wrong, name), name));
    let (distance, name) = distances.min()?;
    (distance <= wrong.len().max(name.len()).div_ceil(3)).then_some(name)
}

/// Levenshtein's distance: letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_nonsense_is_not() {
        let names = ["listen", "seeds", "probe_period"];
        assert_eq!(nearest("lisetn", names.into_iter()), Some("listen"));
        assert_eq!(nearest("probe_perod", names.into_iter()), Some("probe_period"));
        assert_eq!(nearest("colour", names.into_iter()), None);
    }
}
