//! Writes the image of the helper, as an OCI archive, to standard output.
use std::io::Write;

fn main() -> std::io::Result<()> {
    let (archive, digest) = v6_runtime_kubernetes::helper_image("localhost/v6-helper:test")?;
    std::io::stdout().write_all(&archive)?;
    eprintln!("{digest}");
    Ok(())
}
