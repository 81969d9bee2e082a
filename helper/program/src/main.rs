//! The small static program that runs beside or inside a container. `v6-helper --help` says
//! what it does.

mod args;
mod cgroup;
mod claim;
mod examine;
mod examine_pod;
mod guard;
mod init;
mod log_file;
mod memory;
mod monitor;
mod monitor_args;
mod namespaces;
mod pod;
mod pod_handshake;
mod pod_outputs;
mod pod_receive;
mod pod_sidecar;
mod pod_tunnel;
mod processes;
mod proxy;
mod run_folder;
mod sys;
mod tunnel;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let code = match args::parse(std::env::args_os().skip(1)) {
        Ok(args::Request::Init(options)) => init::run(&options),
        Ok(args::Request::Monitor(options)) => monitor::run(&options),
        Ok(args::Request::Examine { control, in_pod }) => examine::run(control.as_deref(), in_pod),
        Ok(args::Request::Receive(options)) => pod_receive::run(*options),
        Ok(args::Request::Sidecar(options)) => pod_sidecar::run(*options),
        Ok(args::Request::Help) => print(args::HELP),
        Ok(args::Request::Version) => print(concat!("v6-helper ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            eprintln!("v6-helper: {error}");
            125
        }
    };
    // Exit codes of Linux have eight bits, and so have all that get here.
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}

fn print(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => 125,
    }
}
