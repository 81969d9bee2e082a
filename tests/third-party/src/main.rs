//! The helper of the process runtime, in its three parts. Nobody calls it by hand.

use std::path::Path;
use std::process::ExitCode;

use process_runtime::helper;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["supervise", run] => helper::supervise(Path::new(run)),
        ["inside", run] => helper::inside(Path::new(run)),
        ["check", folder] => helper::check(Path::new(folder)),
        _ => {
            eprintln!("usage: process-runtime supervise|inside|check FOLDER");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("process-runtime {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}
