//! The `v6-node` program as a person or a script meets it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;
use std::process::{Command, Output};

fn v6_node(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_v6-node"))
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config.yaml");
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_and_version_are_no_mistake() {
    for arguments in [["--help"], ["--version"]] {
        let output = v6_node(&arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn a_wrong_command_line_is_64() {
    for arguments in [
        vec![],
        vec!["chek"],
        vec!["check"],
        vec!["check", "--config", "x", "--runtime", "dokcer"],
    ] {
        let output = v6_node(&arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_wrong_configuration_is_64_with_all_mistakes_on_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.yaml");
    std::fs::write(&file, "hq_ulr: x\n").unwrap();
    let output = v6_node(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("did you mean \"hq_url\"?"), "{shown}");
    assert!(
        shown
            .lines()
            .all(|line| line.starts_with("FAIL  configuration")),
        "{shown}"
    );
}

#[test]
fn json_is_one_object_alone_and_shows_no_secret() {
    let output = v6_node(&["check", "--json", "--config", &sample()]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["verdict"] == "fail")
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert!(failed.contains(&"data lung"), "{report}");
    assert_eq!(report["ok"], false);
    assert_ne!(output.status.code(), Some(0));
    let all = format!("{report}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!all.contains("put-the"), "{all}");
}
