//! House rules as tests: what a reader may rely on in every file.
//!
//! A rule that gets in the way of clearer code is changed here, in the same commit, with a reason.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_tests::process::repository;

/// Lines of a file, at most. At 500 look for a second concept.
const LINES_MAX: usize = 1_000;

/// What lies at the top of the repository, beside dot files. New rooms are a decision, not an accident.
const TOP: [&str; 15] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "DEVELOPERS.md",
    "LICENSE",
    "README.md",
    "ctl",
    "docs",
    "node",
    "proto",
    "rustfmt.toml",
    "simulations",
    "target",
    "tests",
];

/// Crates of the workspace.
const CRATES: [&str; 5] = ["ctl", "node", "proto", "simulations", "tests"];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn name(&self) -> String {
        self.path.strip_prefix(repository()).unwrap_or(&self.path).display().to_string()
    }

    /// Lines with their numbers, comments left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn rust_sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for name in CRATES {
        collect(&repository().join(name), "rs", &mut sources);
    }
    assert!(sources.len() > 50, "found {} sources only", sources.len());
    sources
}

fn collect(directory: &Path, extension: &str, found: &mut Vec<Source>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", "node_modules"].contains(&name) {
            collect(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.push(Source { path, text });
        }
    }
}

/// Every offence at once, so that one run mends them all.
fn none(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn every_file_says_what_lives_in_it() {
    // `foo/tests.rs` is the long form of `mod tests` in `foo.rs`, which says it.
    let silent = |s: &Source| !s.text.starts_with("//!") && !s.path.ends_with("tests.rs");
    let offences = rust_sources().into_iter().filter(silent).map(|s| s.name());
    none("a file begins with `//!`: what belongs here, what stays out", offences.collect());
}

#[test]
fn no_file_outgrows_one_concept() {
    let long = rust_sources().into_iter().filter_map(|s| {
        let lines = s.text.lines().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", s.name()))
    });
    none("a file has at most 1,000 lines", long.collect());
}

#[test]
fn nothing_is_left_for_later_in_the_code() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK")];
    let mut offences = Vec::new();
    for source in rust_sources() {
        for (index, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                offences.push(format!("{}:{}: {}", source.name(), index + 1, line.trim()));
            }
        }
    }
    none("what is not done is an issue, not a comment", offences);
}

#[test]
fn tasks_start_in_one_place() {
    let spawn = [concat!("tokio::", "spawn("), concat!("task::", "spawn(")];
    let mut offences = Vec::new();
    for source in rust_sources() {
        let name = source.name();
        if !name.starts_with("node/src/")
            || name == "node/src/tasks.rs"
            || name.ends_with("tests.rs")
            || name.ends_with("testing.rs")
            || name.contains("/tests/")
        {
            continue;
        }
        let before_tests = source.text.find("#[cfg(test)]").unwrap_or(source.text.len());
        let lines_before_tests = source.text[..before_tests].lines().count();
        for (number, line) in source.code().take_while(|(number, _)| *number <= lines_before_tests) {
            if spawn.iter().any(|call| line.contains(call)) {
                offences.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    none("tasks of a node start by `tasks::Tasks::spawn`: named, counted, their panics noticed", offences);
}

#[test]
fn nobody_sleeps_where_time_is_an_argument() {
    let sleep =
        [concat!("thread::", "sleep"), concat!("time::", "sleep("), concat!("setTime", "out(resolve")];
    let mut offences = Vec::new();
    for source in rust_sources() {
        let name = source.name();
        // The load generator paces itself by the real clock: that is what it is for.
        let by_the_clock = name.starts_with("node/") || name.starts_with("simulations/src/load");
        if by_the_clock || name.starts_with("ctl/") {
            continue;
        }
        for (number, line) in source.code() {
            if sleep.iter().any(|call| line.contains(call)) {
                offences.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    none("tests wait on states, machines are told the time", offences);
}

#[test]
fn machines_touch_no_clock_no_system_and_no_runtime() {
    let banned = [
        "std::time::Instant",
        "SystemTime",
        "std::collections::HashMap",
        "std::env",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::thread",
        "tokio",
        "quinn",
        "hyper::",
    ];
    let mut offences = Vec::new();
    for source in rust_sources() {
        if !source.name().starts_with("proto/src/") {
            continue;
        }
        for (number, line) in source.code() {
            if banned.iter().any(|word| line.contains(word)) && line.trim_start().starts_with("use ") {
                offences.push(format!("{}:{number}: {}", source.name(), line.trim()));
            }
        }
    }
    none("`proto` is handed time, randomness and bytes", offences);
}

#[test]
fn the_top_of_the_repository_is_fixed() {
    let mut offences = Vec::new();
    for entry in fs::read_dir(repository()).expect("the repository") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            offences.push(name);
        }
    }
    none("a new room at the top needs a decision", offences);
}

#[test]
fn packages_are_pinned_without_addresses() {
    let lock = fs::read_to_string(repository().join("tests/js/package-lock.json")).expect("a lock file");
    assert!(
        !lock.contains("\"resolved\""),
        "the lock file names where packages come from: see tests/js/.npmrc"
    );
    let package = fs::read_to_string(repository().join("tests/js/package.json")).expect("a package file");
    assert!(!package.contains('^') && !package.contains('~'), "versions of clients are exact");
}

/// They are compiled by another compiler only, so that nothing else tells.
#[test]
fn every_check_has_a_fuzz_target() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).expect("a file");
    let manifest = read("node/fuzz/Cargo.toml");
    let mut checks = Vec::new();
    for (package, path) in [
        ("mesh_proto", "proto/src/fuzz/clients.rs"),
        ("mesh_proto", "proto/src/fuzz/mesh.rs"),
        ("meshd", "node/src/fuzz/mod.rs"),
    ] {
        for line in read(path).lines().filter_map(|line| line.strip_prefix("pub fn check_")) {
            let name = line.split('(').next().expect("a name");
            let target = read(&format!("node/fuzz/fuzz_targets/{name}.rs"));
            assert!(target.contains(&format!("{package}::fuzz::check_{name}(bytes)")), "{target}");
            assert!(
                manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")),
                "{name}"
            );
            checks.push(name.to_owned());
        }
    }
    let targets = fs::read_dir(repository().join("node/fuzz/fuzz_targets")).expect("a directory").count();
    assert_eq!(targets, checks.len());
    let page = read("docs/fuzzing.md");
    none("documented", checks.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect());
}
