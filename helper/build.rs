//! Builds the program of `program/` statically, for the library to embed.
//!
//! The sources are copied to OUT_DIR first: the folder of a published package is read-only,
//! and the manifest cannot have its usual name there (see `program/manifest.toml`).

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The variables that the inner build may see. RUSTFLAGS, wrappers and profiles of the outer
/// build are not for it; where crates come from, and how to get at them, is.
const KEPT: &[&str] = &[
    "CARGO_HOME",
    "CARGO_NET_OFFLINE",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "PATH",
    "RUSTC",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "SOURCE_DATE_EPOCH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
const KEPT_PREFIXES: &[&str] = &[
    "CARGO_HTTP_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=program");

    let target = variable("TARGET")?;
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return Err(
            format!("v6-helper runs in Linux containers, and is not built for {target}").into(),
        );
    }
    let architecture = match variable("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    };

    let home = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let sources = out.join("program");
    stage(&home.join("program"), &sources)?;

    let target_dir = out.join("target");
    build(&home, &sources.join("Cargo.toml"), &target_dir, &target)?;

    let program = fs::read(target_dir.join(&target).join("release/v6-helper"))?;
    let digest: String = Sha256::digest(&program)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(out.join("v6-helper"), &program)?;
    println!("cargo::rustc-env=V6_HELPER_SHA256={digest}");
    println!("cargo::rustc-env=V6_HELPER_ARCHITECTURE={architecture}");
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

/// Copies manifest, lock file and sources. Sources that are no longer there do not stay.
fn stage(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to.join("src"))?;
    fs::copy(from.join("manifest.toml"), to.join("Cargo.toml"))?;
    fs::copy(from.join("Cargo.lock"), to.join("Cargo.lock"))?;
    for entry in fs::read_dir(from.join("src"))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join("src").join(entry.file_name()))?;
    }
    Ok(())
}

fn build(
    home: &Path,
    manifest: &Path,
    target_dir: &Path,
    target: &str,
) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(variable("CARGO")?);
    command
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--target",
            target,
            "--manifest-path",
        ])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target_dir)
        // The configuration of cargo that applies to the package also applies to the program.
        .current_dir(home)
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| is_kept(name)))
        // Set in the environment it replaces flags from configuration files too.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let triple = target.to_uppercase().replace(['-', '.'], "_");
        command.env(format!("CARGO_TARGET_{triple}_LINKER"), linker);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(
            format!("building the program of v6-helper for {target} failed: {status}").into(),
        );
    }
    Ok(())
}

fn is_kept(name: &OsString) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
