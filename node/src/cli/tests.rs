use clap::CommandFactory as _;

use super::*;

fn help(path: &[&str]) -> String {
    let mut command = Cli::command();
    command.build();
    for name in path {
        command = match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => panic!("no command {name}"),
        };
    }
    command.render_long_help().to_string()
}

#[test]
fn help_is_as_reviewed() {
    insta::assert_snapshot!(help(&[]));
    insta::assert_snapshot!(help(&["check"]));
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn exit_codes_are_told_apart() {
    let mut codes = Exit::ALL.map(Exit::code).to_vec();
    codes.dedup();
    assert_eq!(codes, [0, 1, 64, 69, 70, 75, 77]);
}

#[test]
fn the_documentation_has_the_exit_codes() {
    let page = include_str!("../../../docs/configuration.md");
    for exit in Exit::ALL {
        let begin = format!("| {} | ", exit.code());
        assert!(page.lines().any(|line| line.starts_with(&begin)), "{begin}");
    }
}
