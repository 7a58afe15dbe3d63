//! The walls of the house (ARCHITECTURE.md), held by a test.
//!
//! Reads the sources as text: which room knows which, where sockets, clocks
//! and `unsafe` may stand, and that the map names only what exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms an engine may know.
const ENGINE_WALLS: [(&str, &[&str]); 6] = [
    ("dhcp", &[]),
    ("tftp", &[]),
    ("disk", &[]),
    ("contents", &["disk"]),
    ("scsi", &["disk"]),
    ("iscsi", &["scsi"]),
];

/// Which rooms of the program a room must not know.
const PROGRAM_WALLS: [(&str, &[&str]); 6] = [
    (
        "inventory",
        &[
            "boot", "services", "api", "cli", "server", "timeline", "config",
        ],
    ),
    (
        "timeline",
        &["boot", "services", "api", "cli", "server", "config"],
    ),
    (
        "boot",
        &["services", "api", "cli", "server", "timeline", "config"],
    ),
    ("services", &["api", "cli", "server"]),
    ("api", &["boot", "services", "cli", "server"]),
    ("cli", &["inventory", "boot", "services", "timeline"]),
];

/// What only `server.rs` of an engine may hold: sockets, clocks, threads.
const SERVER_ONLY: [&str; 9] = [
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "Socket::new",
    "socket2::",
    "Instant::now",
    "SystemTime::now",
    "thread::spawn",
    "tokio::",
];

/// Modules that may hold unsafe code; each says why at its head.
const UNSAFE_MODULES: &str = "tests/unsafe-modules.txt";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `directory` that end in `suffix`, relative to the root.
fn files(directory: &str, suffix: &str) -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with(".git") && !path.ends_with(".lab") {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(directory), &mut found);
    let mut names: Vec<String> = found
        .iter()
        .filter_map(|path| path.strip_prefix(root()).ok()?.to_str().map(str::to_owned))
        .filter(|name| name.ends_with(suffix))
        .collect();
    names.sort();
    names
}

fn rust_files() -> Vec<String> {
    ["src", "crates", "lab", "tests", "benches", "fuzz"]
        .iter()
        .flat_map(|directory| files(directory, ".rs"))
        .collect()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The code of a file: without comments and without its test module.
fn code(name: &str) -> String {
    let text = read(name);
    let text = text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/")
        || name.ends_with("tests.rs")
        || name.contains("/examples/")
        || name.ends_with("contract.rs")
        || name.ends_with("/fuzzing.rs")
}

#[test]
fn engines_know_only_the_rooms_they_may() {
    for (engine, allowed) in ENGINE_WALLS {
        let manifest: toml::Table =
            toml::from_str(&read(&format!("crates/{engine}/Cargo.toml"))).unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        for (room, _) in ENGINE_WALLS {
            if dependencies.contains_key(room) {
                assert!(
                    allowed.contains(&room),
                    "crates/{engine} must not depend on {room}"
                );
            }
        }
    }
}

#[test]
fn sockets_clocks_and_threads_stand_only_in_server_files() {
    let mut broken = Vec::new();
    for engine in ["dhcp", "tftp", "iscsi", "scsi", "contents"] {
        for file in files(&format!("crates/{engine}/src"), ".rs") {
            if file.ends_with("/server.rs") || file.contains("/server/") || is_test(&file) {
                continue;
            }
            let code = code(&file);
            for word in SERVER_ONLY {
                if code.contains(word) {
                    broken.push(format!("{file} holds {word}"));
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "only server.rs may:\n{}",
        broken.join("\n")
    );
}

#[test]
fn rooms_of_the_program_know_only_what_lies_below() {
    let mut broken = Vec::new();
    for (room, forbidden) in PROGRAM_WALLS {
        for file in files(&format!("src/{room}"), ".rs") {
            if is_test(&file) {
                continue;
            }
            let code = code(&file);
            for other in forbidden {
                if code.contains(&format!("crate::{other}::"))
                    || code.contains(&format!("crate::{{{other}"))
                {
                    broken.push(format!("{file} knows {other}"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn engines_read_no_environment_and_no_configuration() {
    let mut broken = Vec::new();
    for (engine, _) in ENGINE_WALLS {
        for file in files(&format!("crates/{engine}/src"), ".rs") {
            if !is_test(&file) && code(&file).contains("env::var") {
                broken.push(file);
            }
        }
    }
    assert!(
        broken.is_empty(),
        "engines that read the environment: {broken:?}"
    );
}

#[test]
fn facts_are_saved_in_one_file_only() {
    let mut broken = Vec::new();
    for file in files("src", ".rs") {
        if !file.starts_with("src/inventory/store") && code(&file).contains("rusqlite") {
            broken.push(file);
        }
    }
    assert!(
        broken.is_empty(),
        "only src/inventory/store knows how facts are saved: {broken:?}"
    );
}

#[test]
fn unsafe_code_stands_only_in_modules_named_for_it() {
    let list = read(UNSAFE_MODULES);
    let named: Vec<&str> = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect();
    let mut broken = Vec::new();
    for file in rust_files() {
        if file == "tests/tidy.rs" {
            continue;
        }
        let text = read(&file);
        let holds = text.contains("allow(unsafe_code)") || text.contains("allow(unsafe_code,");
        if holds && !named.contains(&file.as_str()) {
            broken.push(format!(
                "{file} holds unsafe code and is not in {UNSAFE_MODULES}"
            ));
        }
        if !holds && named.contains(&file.as_str()) {
            broken.push(format!(
                "{file} is in {UNSAFE_MODULES} and holds no unsafe code"
            ));
        }
        if holds && !text.contains("SAFETY:") {
            broken.push(format!("{file} holds unsafe code and no SAFETY: comment"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is() {
    let bare: Vec<String> = rust_files()
        .into_iter()
        .filter(|file| !read(file).starts_with("//!"))
        .collect();
    assert!(bare.is_empty(), "files without a `//!` head: {bare:?}");
}

#[test]
fn files_have_a_noun() {
    const NAMELESS: [&str; 8] = [
        "util", "utils", "common", "core", "types", "manager", "helper", "helpers",
    ];
    let broken: Vec<String> = rust_files()
        .into_iter()
        .filter(|file| {
            let path = Path::new(file);
            path.file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(|stem| NAMELESS.contains(&stem))
        })
        .collect();
    assert!(broken.is_empty(), "names that name nothing: {broken:?}");
}

#[test]
fn main_stays_small() {
    let lines = read("src/main.rs").lines().count();
    assert!(lines <= 150, "src/main.rs has {lines} lines");
}

#[test]
fn the_map_names_only_what_exists() {
    let mut broken = Vec::new();
    for document in [
        "ARCHITECTURE.md",
        "README.md",
        "CONTRIBUTING.md",
        "docs/boot-story.md",
    ] {
        for path in paths_named(&read(document)) {
            if !root().join(&path).exists() {
                broken.push(format!("{document} names {path}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_test_the_makefile_runs_is_named_and_exists() {
    let makefile = read("Makefile").replace("\\\n", " ");
    let sources: String = rust_files().iter().map(|file| read(file)).collect();
    let mut broken = Vec::new();
    for line in makefile.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let exact = words.iter().position(|word| *word == "--exact");
        match exact.and_then(|at| words.get(at + 1)) {
            Some(test) => {
                let name = test.rsplit("::").next().unwrap_or_default();
                if !sources.contains(&format!("fn {name}()")) {
                    broken.push(format!("there is no test {test}"));
                }
            }
            // One of them writes into the tree.
            None if words.contains(&"--ignored") => broken.push(format!("runs them all:{line}")),
            None => {}
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Paths of ours in back-ticks: those that begin with a folder of the tree.
fn paths_named(text: &str) -> Vec<String> {
    const FOLDERS: [&str; 7] = [
        "src/", "crates/", "tests/", "docs/", "lab/", "benches/", "fuzz/",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| FOLDERS.iter().any(|folder| quoted.starts_with(folder)))
        .filter(|quoted| {
            !quoted.contains([' ', '*', '<', '{']) && !quoted.chars().any(char::is_uppercase)
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_map_has_every_room() {
    let map = read("ARCHITECTURE.md");
    let mut missing = Vec::new();
    for directory in ["crates", "src"] {
        for entry in fs::read_dir(root().join(directory)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() && !map.contains(&format!("`{directory}/{name}/`")) {
                missing.push(format!("{directory}/{name}/"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md says nothing of {missing:?}"
    );
}

#[test]
fn features_of_dependencies_are_declared_once() {
    let mut broken = Vec::new();
    let mut manifests: Vec<String> = files("crates", "Cargo.toml");
    manifests.extend(files("lab", "Cargo.toml"));
    manifests.push("Cargo.toml".into());
    for name in manifests {
        let manifest: BTreeMap<String, toml::Value> = toml::from_str(&read(&name)).unwrap();
        for table in ["dependencies", "dev-dependencies"] {
            let Some(dependencies) = manifest.get(table).and_then(toml::Value::as_table) else {
                continue;
            };
            for (dependency, value) in dependencies {
                let inherits = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                if !inherits || value.as_table().is_some_and(|table| table.len() > 1) {
                    broken.push(format!("{name}: {dependency}"));
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "write `{{}}.workspace = true`: {broken:?}"
    );
}
