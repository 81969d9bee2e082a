//! Prints what a namespace needs to have for a node.

fn main() -> Result<(), String> {
    let namespace = std::env::args().nth(1).ok_or("name the namespace")?;
    print!("{}", v6_runtime_kubernetes::rbac(&namespace));
    Ok(())
}
