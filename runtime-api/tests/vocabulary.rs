//! The contract knows no engine and no platform: none of their words is in its sources.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;

/// Names of engines and of what they are made of, and words of the platform that runs on top.
const FOREIGN: [&str; 26] = [
    "docker",
    "podman",
    "containerd",
    "kubernetes",
    "kubectl",
    "kube",
    "k8s",
    "pod",
    "pods",
    "namespace",
    "configmap",
    "slurm",
    "sbatch",
    "squeue",
    "apptainer",
    "singularity",
    "sif",
    "bollard",
    "vantage6",
    "v6",
    "hq",
    "organization",
    "organisation",
    "collaboration",
    "task",
    "tasks",
];

/// Where one of them is meant in another sense, with the reason.
const MEANT_OTHERWISE: [(&str, &str); 3] = [
    ("image.rs", "docker.io"), // a registry's host, in the grammar of image references
    ("", "::task"),            // modules of libraries
    ("", "/.v6"),              // a path that backends keep for themselves
];

fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
}

fn foreign_words(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut line = line.replace("v6_runtime", "").replace("v6-runtime", "");
        for (only_in, phrase) in MEANT_OTHERWISE {
            if file.ends_with(only_in) {
                line = line.replace(phrase, "");
            }
        }
        found.extend(
            words(&line)
                .filter(|word| FOREIGN.contains(&word.as_str()))
                .map(|word| format!("{file}:{}: {word}", number + 1)),
        );
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push((
                path.display().to_string(),
                fs::read_to_string(&path).unwrap(),
            ));
        }
    }
}

#[test]
fn no_foreign_word() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    assert!(files.len() > 20, "found only {} files", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|(file, text)| foreign_words(file, text))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn foreign_words_are_found() {
    let found = foreign_words(
        "a.rs",
        "/// Runs a Docker container, or a pod.\nlet hq_url = 1;",
    );
    assert_eq!(found, ["a.rs:1: docker", "a.rs:1: pod", "a.rs:2: hq"]);
    assert!(foreign_words("image.rs", "(\"docker.io\", name)").is_empty());
}
