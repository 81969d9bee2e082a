//! Prints what a namespace needs to have for a node; with `claims` as a second word, for one that keeps
//! outputs on claims.
use std::io::Write;

use v6_runtime_kubernetes::RbacOptions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let namespace = words.next().ok_or("name the namespace")?;
    let options = match words.next().as_deref() {
        None => RbacOptions::default(),
        Some("claims") => RbacOptions::default().with_claims(true),
        Some(other) => return Err(format!("{other} is not known here").into()),
    };
    let objects = v6_runtime_kubernetes::rbac(&namespace, options)?;
    std::io::stdout().write_all(objects.as_bytes())?;
    Ok(())
}
