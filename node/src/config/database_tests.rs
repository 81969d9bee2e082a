//! What is read about databases.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use v6_runtime::VolumePath;

use super::tests::{CHART, environment, problems, read};
use super::*;

#[test]
fn databases_of_the_environment_are_checked() {
    let text = "hq_url: http://hq\nport: 80\napi_path: /hq\n";
    let with = |variables: &[(&str, &str)]| {
        let fixed = [
            ("V6_NODE_NAME", "a"),
            ("V6_API_KEY", "k"),
            ("KEYCLOAK_URL", "http://k"),
            ("KEYCLOAK_REALM", "r"),
        ];
        problems(text, &fixed.iter().chain(variables).copied().collect())
    };
    insta::assert_snapshot!(with(&[
        ("DATABASE_LABELS", "a,../b,A,c"),
        ("DATABASE_A_TYPE", "a/b"),
        ("DATABASE_C_URI", "/c"),
    ]));
}

#[test]
fn a_service_without_a_grant_is_warned_of() {
    let text = CHART.replace(
        "      egress: [\"db.example.org:5432\"]",
        "      read_only: no",
    );
    let config = read(&text, &environment([])).unwrap();
    let shown: Vec<String> = config.notices.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn data_is_in_a_volume_or_a_part_of_one() {
    let of_lung = |lines: &str| CHART.replace("      group: 1500\n", lines);
    let source = |lines: &str| {
        let config = read(&of_lung(lines), &environment([])).unwrap();
        config.databases[0].source.clone()
    };
    let whole = VolumeData {
        name: "studies".into(),
        path: None,
    };
    assert_eq!(whole.to_string(), "the volume studies");
    let part = VolumeData {
        path: Some(VolumePath::new("2026/lung.csv").unwrap()),
        ..whole.clone()
    };
    assert_eq!(part.to_string(), "2026/lung.csv in the volume studies");
    let volume = "      volume: studies\n";
    assert_eq!(source(volume), Source::Volume(whole));
    let with_path = format!("{volume}      path: 2026/lung.csv\n");
    assert_eq!(source(&with_path), Source::Volume(part));

    for (lines, wrong) in [
        (
            with_path.replace("2026", "/srv"),
            "\"/srv/lung.csv\" is not a path in a volume",
        ),
        (
            with_path.replace("2026", ".."),
            "\"../lung.csv\" is not a path in a volume",
        ),
        (with_path.replace(volume, ""), "there is no volume"),
    ] {
        let shown = problems(&of_lung(&lines), &environment([]));
        assert!(
            shown.contains("databases.lung.path") && shown.contains(wrong),
            "{shown}"
        );
    }
}
