#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;

use super::*;
use crate::config;

fn environment() -> Environment {
    [("HOME", "/home/v6")].into_iter().collect()
}

fn shown(lines: &[Line]) -> String {
    let mut out = Vec::new();
    lines
        .iter()
        .for_each(|line| report::write_line(&mut out, line, false).unwrap());
    String::from_utf8(out).unwrap()
}

#[test]
fn mistakes_in_the_configuration() {
    let problems = config::parse(
        Path::new("node.yaml"),
        "hq_ulr: x\nport: x\n",
        &environment(),
    )
    .unwrap_err();
    let lines = of_problems(&problems);
    assert_eq!(report::exit(&lines), Exit::Usage);
    insta::assert_snapshot!(shown(&lines));
    let mut json = Vec::new();
    report::write_json(&mut json, &lines[..1]).unwrap();
    insta::assert_snapshot!(String::from_utf8(json).unwrap());
}

#[tokio::test]
async fn a_whole_check_of_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    let data = folder.path().join("lung.csv");
    std::fs::write(&data, "time,status\n1,0\n").unwrap();
    let text = format!(
        "
node:
  name: hospital-a
  apiKey: k
  keycloak: {{url: 'https://auth.example.org'}}
  hq: {{url: 'https://hq.example.org'}}
  encryption: {{enabled: true}}
  databases:
    fileBased:
      - {{name: lung, type: csv, uri: {place}/lung.csv}}
      - {{name: gone, type: csv, uri: {place}/gone.csv}}
    serviceBased:
      - {{name: omop, type: omop, uri: 'postgresql://db.example.org/x'}}
runtime:
  data_dir: {place}
  images:
    - {{pattern: reg.example.org/old, run_as: image, risk_accepted: 'reviewed by us'}}
"
    );
    let file = folder.path().join("node.yaml");
    std::fs::write(&file, &text).unwrap();
    let config = config::load(&file, &environment()).unwrap();
    let mut lines = of_config(&config);
    for probe in &local::probes(&config) {
        // The disk's free space is this machine's own.
        if probe.name() != "disk" {
            lines.push(probe::run(probe.as_ref()).await);
        }
    }
    // Temporary folders are closed to others, which is a warning for the data in them,
    // and the user of runs depends on who runs the tests.
    let text = shown(&lines).replace(&place, "FOLDER");
    let lung = lines.iter().find(|line| line.name == "data lung").unwrap();
    assert_ne!(lung.finding.verdict, Verdict::Fail, "{text}");
    let stable: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("data lung"))
        .collect();
    insta::assert_snapshot!(stable.join("\n"));
    assert_eq!(report::exit(&lines), Exit::Failed);
}
