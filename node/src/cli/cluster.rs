//! `v6-node rbac` and `v6-node helper-image`: what a Kubernetes cluster has to have before a node can use it.

use std::io::{IsTerminal as _, Write as _};

use super::{Exit, Failure};
use crate::backends;

/// What `rbac` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct RbacArgs {
    /// The namespace of the node's runs
    #[arg(long, value_name = "NAME")]
    namespace: String,

    /// For a node outside of the cluster: with a token for its kubeconfig that does not expire
    #[arg(long)]
    outside: bool,

    /// For a node whose configuration has runtime.kubernetes.outputs: claim
    #[arg(long)]
    claims: bool,
}

/// What `helper-image` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// The name that the archive gives it
    #[arg(long, value_name = "IMAGE", default_value = concat!("localhost/v6-helper:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

/// Prints the objects that an administrator applies.
///
/// # Errors
/// A name that is no namespace's; standard output that is closed.
pub fn rbac(args: &RbacArgs) -> Result<Exit, Failure> {
    let objects = backends::cluster_rights(&args.namespace, args.outside, args.claims)?;
    write(objects.as_bytes())
}

/// Writes the archive to standard output, and the image's digest to standard error.
///
/// # Errors
/// Standard output that is a terminal, or closed.
pub fn helper_image(args: &ImageArgs) -> Result<Exit, Failure> {
    no_terminal("v6-node helper-image >v6-helper.tar")?;
    let (archive, digest) = backends::helper_image(&args.name)?;
    eprintln!("{digest}");
    write(&archive)
}

/// Refuses to write an archive to a terminal; `instead` is what to write.
pub(super) fn no_terminal(instead: &str) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() {
        return Ok(());
    }
    let what = format!("an archive is no text: write it to a file ({instead})");
    Err(Failure::new(Exit::Usage, what))
}

/// Writes to standard output.
pub(super) fn write(bytes: &[u8]) -> Result<Exit, Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(Exit::Ok)
}
