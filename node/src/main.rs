//! The `v6-node` command.

fn main() -> std::process::ExitCode {
    v6_node::cli::main()
}
