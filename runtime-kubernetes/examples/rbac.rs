//! Prints what a namespace needs to have for a node.
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let namespace = std::env::args().nth(1).ok_or("name the namespace")?;
    let objects = v6_runtime_kubernetes::rbac(&namespace, false)?;
    std::io::stdout().write_all(objects.as_bytes())?;
    Ok(())
}
