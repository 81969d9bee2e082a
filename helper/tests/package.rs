//! What is embedded, and what a published package holds.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use v6_helper::{PROGRAM, SHA256};

#[test]
fn the_program_is_small_and_needs_no_libraries() {
    assert_eq!(&PROGRAM[..4], b"\x7fELF");
    assert!(PROGRAM.len() < 3_000_000, "{} bytes", PROGRAM.len());
    // A dynamic program names its loader.
    assert!(!PROGRAM.windows(8).any(|word| word == b"/ld-linu"));
    let digest: String = Sha256::digest(PROGRAM)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(digest, SHA256);
}

/// Name, version and checksum of each crate in a lock file that comes from a registry.
fn locked(path: &Path) -> BTreeSet<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let blocks = text
        .split("[[package]]")
        .filter(|block| block.contains("source = "));
    let wanted = ["name = ", "version = ", "checksum = "];
    let lines = |block: &str| {
        let of = |key: &&str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(*key))
                .unwrap()
                .to_owned()
        };
        wanted.iter().map(of).collect()
    };
    blocks.map(lines).collect()
}

#[test]
fn whoever_has_fetched_the_workspace_has_what_the_program_needs() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let inner = locked(&home.join("program/Cargo.lock"));
    let outer = locked(&home.join("../Cargo.lock"));
    assert!(!inner.is_empty());
    let missing: Vec<_> = inner.difference(&outer).collect();
    assert!(
        missing.is_empty(),
        "helper/program/Cargo.lock differs from Cargo.lock: {missing:?}"
    );
}

#[test]
fn a_published_package_holds_the_program() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO"))
        .args([
            "package",
            "--list",
            "--allow-dirty",
            "--offline",
            "--manifest-path",
        ])
        .arg(home.join("Cargo.toml"))
        .output()
        .unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listed: BTreeSet<&str> = list.lines().collect();
    for name in ["build.rs", "program/manifest.toml", "program/Cargo.lock"] {
        assert!(listed.contains(name), "{name} is not in {listed:?}");
    }
    for entry in fs::read_dir(home.join("program/src")).unwrap() {
        let name = format!(
            "program/src/{}",
            entry.unwrap().file_name().to_str().unwrap()
        );
        assert!(
            listed.contains(name.as_str()),
            "{name} is not in {listed:?}"
        );
    }
}
