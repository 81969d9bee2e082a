//! `v6-node image`: this program as an image, with what it needs of this machine and nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cluster::{no_terminal, write as write_out};
use super::{Exit, Failure};
use crate::backends;

/// Where the image has the program.
const PROGRAM: &str = "/usr/local/bin/v6-node";
/// Where the image has the certificates of authorities.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where distributions of Linux keep them in one file.
const KNOWN: [&str; 4] = [
    CERTIFICATES,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// What a C library older than 2.34 loads by itself when it looks up a name.
const LOOKUP: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// What `image` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name that the archive gives it
    #[arg(long, value_name = "IMAGE", default_value = concat!("localhost/v6-node:", env!("CARGO_PKG_VERSION")))]
    name: String,

    /// A PEM file with the certificates of authorities to trust; this machine's, if it is not given
    #[arg(long, value_name = "FILE")]
    certificates: Option<PathBuf>,
}

/// Writes the archive to standard output, and the image's digest to standard error.
///
/// # Errors
/// Standard output that is a terminal, or closed; a file that is needed and cannot be read.
pub fn write(args: &Args) -> Result<Exit, Failure> {
    no_terminal("v6-node image >v6-node.tar")?;
    let program = std::env::current_exe().map_err(|error| Failure::new(Exit::Failed, error))?;
    let mut files = vec![
        file(&program, PROGRAM, true)?,
        file(&certificates(args)?, CERTIFICATES, false)?,
    ];
    // The library's own order differs between its versions.
    let order = b"hosts: files dns\n".to_vec();
    files.push(("/etc/nsswitch.conf".to_owned(), order, false));
    let mut folders = Vec::new();
    for library in libraries(&program)? {
        let at = library.to_string_lossy().into_owned();
        files.push(file(&library, &at, true)?);
        if let Some(folder) = library.parent() {
            let folder = folder.to_string_lossy().into_owned();
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    let mut environment = vec![format!("SSL_CERT_FILE={CERTIFICATES}")];
    if !folders.is_empty() {
        // Where this machine's index of libraries led may be where no loader looks by itself.
        environment.push(format!("LD_LIBRARY_PATH={}", folders.join(":")));
    }
    let (archive, digest) = backends::node_image(&args.name, PROGRAM, &environment, files)?;
    eprintln!("{digest}");
    write_out(&archive)
}

fn file(from: &Path, to: &str, executable: bool) -> Result<(String, Vec<u8>, bool), Failure> {
    match std::fs::read(from) {
        Ok(content) => Ok((to.to_owned(), content, executable)),
        Err(error) => {
            let what = format!("{} can't be read: {error}", from.display());
            Err(Failure::new(Exit::Failed, what))
        }
    }
}

fn certificates(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(given) = &args.certificates {
        return Ok(given.clone());
    }
    let found = KNOWN.into_iter().map(PathBuf::from).find(|at| at.is_file());
    found.ok_or_else(|| {
        let what = "this machine has no file with the certificates of authorities where they usually \
                    are: name one with --certificates, or install the package ca-certificates";
        Failure::new(Exit::Failed, what)
    })
}

/// What the program is linked with, and its loader, each at the path at which the loader finds it; none for
/// a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Failure> {
    // As `ldd` does. A static program has no loader to ask, and would do something of its own.
    let asked = Command::new(program)
        .arg("--version")
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .output();
    let failed = |error: io::Error| {
        let what = format!("the loader could not be asked for libraries: {error}");
        Failure::new(Exit::Failed, what)
    };
    let asked = asked.map_err(failed)?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let mut found = listed(&said).map_err(|lacking| {
        let what = format!("this program needs the library {lacking}, which is not there");
        Failure::new(Exit::Failed, what)
    })?;
    let beside = found.iter().find(|at| at.ends_with("libc.so.6"));
    if let Some(folder) = beside.and_then(|at| at.parent()).map(Path::to_owned) {
        let more = LOOKUP.iter().map(|name| folder.join(name));
        let more: Vec<PathBuf> = more.filter(|at| at.is_file()).collect();
        found.extend(
            more.into_iter()
                .filter(|at| !found.contains(at))
                .collect::<Vec<_>>(),
        );
    }
    Ok(found)
}

/// The paths in what a loader lists; a library that it does not find is the error.
fn listed(said: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in said.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_suffix("=> not found") {
            return Err(name.trim().to_owned());
        }
        let Some((named, _)) = line.rsplit_once(" (0x") else {
            continue;
        };
        let path = named.split_once(" => ").map_or(named, |(_, path)| path);
        // Not the kernel's own, which is no file.
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_loader_lists() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let found = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(listed(said), Ok(found.map(PathBuf::from).to_vec()));
        assert_eq!(listed("v6-node 0.1.0\n"), Ok(Vec::new()));
        assert_eq!(
            listed("\tlibx.so.1 => not found\n"),
            Err("libx.so.1".to_owned())
        );
    }
}
