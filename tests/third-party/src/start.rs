//! From an accepted spec to a supervisor at work.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use v6_runtime::{EnvValue, Error, InputStream, Mount, MountSource, Result, RunSpec};

use crate::inside::{Order, PROGRAM, Place};
use crate::record::Folder;
use crate::runtime::broken;

/// Stores all input in the run's folder, and returns the order for the supervisor.
pub(crate) async fn store(folder: &Folder, image: PathBuf, spec: &RunSpec) -> Result<Order> {
    let temporary = spec.resources.scratch_bytes.map(NonZeroU64::get);
    let mut places = BTreeMap::from([("/tmp".to_owned(), Place::Scratch(temporary))]);
    for (number, mount) in spec.mounts.iter().enumerate() {
        let place = match mount.source {
            MountSource::Scratch(limit) => Place::Scratch(limit.map(NonZeroU64::get)),
            _ => {
                let name = format!("in/{number}");
                let file = folder.create(&name).map_err(|error| broken("run", error))?;
                fill(File::from_std(file), mount).await?;
                Place::Input(name)
            }
        };
        places.insert(mount.target.to_string(), place);
    }
    for (name, output) in &spec.outputs {
        let file = format!("out/{name}");
        folder.create(&file).map_err(|error| broken("run", error))?;
        places.insert(output.path.to_string(), Place::Output(file));
    }
    let mut env: BTreeMap<String, String> = ["HOME", "TMPDIR"]
        .map(|name| (name.to_owned(), "/tmp".to_owned()))
        .into();
    for (name, value) in &spec.env {
        let value = match value {
            EnvValue::Plain(text) => text,
            EnvValue::Secret(secret) => secret.expose(),
            _ => return Err(Error::unsupported("env", "this kind of value")),
        };
        env.insert(name.clone(), value.to_owned());
    }
    let mut words = spec
        .command
        .clone()
        .unwrap_or_else(|| vec![PROGRAM.to_owned()]);
    words.extend(spec.args.iter().cloned());
    let workdir = spec.workdir.as_ref().map_or("/", |path| path.as_str());
    Ok(Order {
        image,
        words,
        env,
        workdir: workdir.to_owned(),
        places,
    })
}

/// Puts what is given into a file.
async fn fill(mut file: File, mount: &Mount) -> Result<()> {
    let written = match &mount.source {
        MountSource::Inline(bytes) => file.write_all(bytes).await,
        MountSource::Secret(secret) => file.write_all(secret.expose().as_bytes()).await,
        MountSource::Stream(stream) => return copy(stream, file).await,
        // `admit` lets nothing else through.
        _ => return Err(Error::unsupported("mounts", "this kind of source")),
    };
    let flushed = written.and(file.flush().await);
    flushed.map_err(|error| broken("run", error))
}

/// Stores exactly as many bytes as a stream said it has.
async fn copy(stream: &InputStream, mut file: File) -> Result<()> {
    let said = stream.len();
    // One more would be one too many.
    let mut reader = stream.open().await?.take(said.saturating_add(1));
    let copied = tokio::io::copy(&mut reader, &mut file).await;
    match copied.map_err(|error| broken("run", error))? {
        length if length == said => file.flush().await.map_err(|error| broken("run", error)),
        length if length > said => {
            let message = format!("a stream goes on after the {said} bytes that it has");
            Err(Error::invalid("mounts", message))
        }
        length => {
            let message = format!("a stream of {said} bytes ended after {length}");
            Err(Error::invalid("mounts", message))
        }
    }
}

/// Hands the run over to a supervisor, and with it the lock.
pub(crate) fn start(helper: &Path, folder: Folder, order: &Order) -> io::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    folder.leave_order(&line)?;
    let started = Command::new(helper)
        .arg("supervise")
        .arg(folder.path())
        .stdin(folder.handle()?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        // Nobody waits for a supervisor; Tokio buries it.
        Ok(_supervisor) => folder.leave_lock(),
        Err(error) => {
            folder.remove()?;
            return Err(error);
        }
    }
    Ok(())
}
