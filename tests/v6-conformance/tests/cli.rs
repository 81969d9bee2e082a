//! What a person meets on the command line: help, results, reports, exit codes, and what is said
//! when something is missing. With the in-memory runtime; no engine is needed.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};

use insta::assert_snapshot;
use serde_json::{Value, json};
use v6_fault_proxy::{Address, Answer, Fault, FaultProxy, Requests, Rule, RuleGuard};

fn suite(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_v6-conformance"));
    // What the machine has must not show.
    let ours = |name: &str| name.starts_with("V6_KUBERNETES_");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .env_remove("DOCKER_HOST")
        .env_remove("CONTAINER_HOST")
        .output()
        .unwrap()
}

/// The in-memory runtime, one case after the other.
fn memory(arguments: &[&str]) -> Output {
    let first = ["--runtime", "memory", "--test-threads", "1"];
    suite(&[&first, arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code and all that was said, without what differs each time.
fn shown(output: &Output) -> String {
    let out = text(&output.stdout);
    let out: String = out
        .lines()
        .map(|line| match line.split_once("; finished in ") {
            Some((start, _)) => format!("{start}; finished in 0.00s\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let mut all = format!("{}\n", output.status);
    for (name, said) in [("stdout", out), ("stderr", text(&output.stderr))] {
        if !said.is_empty() {
            all.push_str(&format!("--- {name}\n{said}"));
        }
    }
    all
}

fn read_json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(report: &Value, outcome: &str) -> Vec<String> {
    let cases = report["cases"].as_array().unwrap().iter();
    cases
        .filter(|case| case["outcome"] == outcome)
        .map(|case| case["id"].as_str().unwrap().to_owned())
        .collect()
}

/// With the feature there is a subcommand more.
#[cfg(feature = "faults")]
#[test]
fn help_says_what_there_is() {
    assert_snapshot!(shown(&suite(&["--help"])));
    assert_snapshot!(shown(&suite(&["prove", "--help"])));
}

#[test]
fn without_a_runtime_it_says_which_there_are() {
    assert_snapshot!(shown(&suite(&[])));
    assert_snapshot!(shown(&suite(&["--runtime", "no-such"])));
}

#[test]
fn results_are_lines_as_of_rusts_own_tests() {
    assert_snapshot!(shown(&memory(&[
        "lease", "acquire", "--skip", "dropped", "--name", "mine"
    ])));
}

#[test]
fn cases_are_listed_with_their_clauses() {
    assert_snapshot!(shown(&memory(&["--list", "lease", "acquire"])));
    let listed = memory(&["--list", "lease", "acquire", "--format", "json"]);
    assert_snapshot!(shown(&listed));
    // Nobody has to start an engine to see what there is.
    let docker = ["--runtime", "docker", "--host", "unix:///no/such/socket"];
    let without = suite(
        &[
            &docker[..],
            &["--list", "lease", "acquire", "--format", "json"],
        ]
        .concat(),
    );
    assert_eq!(shown(&without), shown(&listed));
}

#[test]
fn json_has_the_numbers_and_the_cases() {
    let output = memory(&[
        "--format", "json", "--filter", "lease", "--filter", "acquire",
    ]);
    let report = read_json(&output);
    let numbers = ["passed", "failed", "skipped", "inconclusive"];
    let numbers = numbers.map(|name| report[name].as_u64().unwrap() as usize);
    let passed = ids(&report, "passed");
    assert_eq!(
        passed,
        ["a_lease_is_exclusive", "acquire_can_be_dropped_anywhere"]
    );
    let inconclusive = ids(&report, "inconclusive");
    assert_eq!(inconclusive, ["a_killed_holder_frees_the_lease"]);
    let all = report["cases"].as_array().unwrap().len();
    assert_eq!(numbers, [passed.len(), 0, all - 3, inconclusive.len()]);
    assert_eq!(report["partial"], true, "cases were left out");
    assert!(output.status.success());
}

#[test]
fn reports_are_files_in_the_form_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (yaml, json_file, xml) = (at("r.yaml"), at("r.json"), at("r.xml"));
    let files = ["--report", &yaml, "--report", &json_file, "--report", &xml];
    let output = memory(&[&["lease", "acquire", "--command", "how"][..], &files].concat());
    assert!(output.status.success(), "{}", shown(&output));

    let read = |name: &str| std::fs::read_to_string(Path::new(name)).unwrap();
    let top: Vec<String> = read(&yaml).lines().take(7).map(str::to_owned).collect();
    assert_snapshot!(top.join("\n"));
    let written: Value = serde_json::from_str(&read(&json_file)).unwrap();
    assert_eq!(written["command"], "how");
    assert_eq!(written["passed"], 2);
    let junit = quick_junit::Report::deserialize_from_str(&read(&xml)).unwrap();
    let suite = &junit.test_suites[0];
    assert_eq!(suite.tests, written["cases"].as_array().unwrap().len());
    assert_eq!((suite.failures, suite.errors), (0, 0));

    let other = memory(&["lease", "acquire", "--report", &at("r.txt")]);
    assert_eq!(other.status.code(), Some(4));
    let said = text(&other.stderr);
    assert!(
        said.contains("a report's name ends in .yaml, .json or .xml"),
        "{said}"
    );

    // What the report says is held against another run.
    let same = memory(&["lease", "acquire", "--against", &yaml]);
    assert_eq!(same.status.code(), Some(0), "{}", shown(&same));
    let less = memory(&["--exact", "a_lease_is_exclusive", "--against", &yaml]);
    assert_snapshot!(shown(&less));

    let page = suite_matrix(folder.path());
    assert!(page.contains("| passed | 2 |"), "{page}");
}

fn suite_matrix(folder: &Path) -> String {
    let output = suite(&["matrix", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{}", shown(&output));
    std::fs::read_to_string(folder.join("README.md")).unwrap()
}

#[test]
fn to_run_nothing_is_a_failure() {
    assert_snapshot!(shown(&memory(&["no_such_case"])));
    // Also if there are cases, and none of them could be tried.
    let hook = memory(&["--exact", "a_killed_holder_frees_the_lease"]);
    assert_eq!(hook.status.code(), Some(3), "{}", shown(&hook));
}

#[test]
fn what_is_left_out_is_told() {
    let skipped = memory(&["lease", "acquire", "--skip", "dropped", "--format", "json"]);
    let report = read_json(&skipped);
    assert_eq!(report["partial"], true);
    let cases = report["cases"].as_array().unwrap();
    let case = cases
        .iter()
        .find(|case| case["id"] == "acquire_can_be_dropped_anywhere")
        .unwrap();
    assert_eq!(case["outcome"], "skipped");
    assert_eq!(case["by"], "operator");
}

#[test]
fn an_engine_that_is_not_there_is_told() {
    let docker = |host: &str| shown(&suite(&["--runtime", "docker", "--host", host, "lease"]));
    assert_snapshot!(docker("nowhere"));
    assert_snapshot!(docker("unix:///no/such/socket"));
    assert_snapshot!(docker("tcp://127.0.0.1:1"));
    let empty = tempfile::tempdir().unwrap();
    let matrix = suite(&["matrix", empty.path().to_str().unwrap()]);
    assert_eq!(matrix.status.code(), Some(4));
    assert!(text(&matrix.stderr).contains("has no report"));
}

/// An engine that knows its version and this about every image.
fn engine(folder: &Path, image: Answer) -> (FaultProxy, [RuleGuard; 2]) {
    let nowhere = Address::Unix(folder.join("nowhere"));
    let proxy = FaultProxy::start(Address::Unix(folder.join("engine")), nowhere).unwrap();
    let version = Answer::new(200).json(&json!({"Version": "1", "ApiVersion": "1.41"}));
    let version = Rule::new(
        Requests::any().path_ends_with("/version"),
        Fault::Answer(version),
    );
    let image = Rule::new(
        Requests::any().path_contains("/images/"),
        Fault::Answer(image),
    );
    let rules = [proxy.add(version), proxy.add(image)];
    (proxy, rules)
}

#[test]
fn an_engine_without_the_probe_is_told() {
    let shown = |image: Answer| {
        let folder = tempfile::tempdir().unwrap();
        let (proxy, _rules) = engine(folder.path(), image);
        let address = proxy.address().to_string();
        let output = suite(&["--runtime", "docker", "--host", &address, "lease"]);
        shown(&output).replace(&address, "ENGINE")
    };
    assert_snapshot!(shown(
        Answer::new(404).json(&json!({"message": "no such image"}))
    ));
    let shell = json!({"Id": "sha256:1", "Config": {"Entrypoint": ["/bin/sh", "-c"]}});
    assert_snapshot!(shown(Answer::new(200).json(&shell)));
}
