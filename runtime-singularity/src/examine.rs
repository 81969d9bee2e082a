//! A run of our own that tries what a run must not be able to do.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use v6_runtime::{
    CleanupOptions, Connection, EgressGrant, Error, ErrorKind, GrantName, ImageRef, Observation,
    Outcome, Owner, PullPolicy, Result, RunId, RunSpec, Runtime, RuntimeExt,
};

use crate::config::SingularityConfig;
use crate::error::{Error as Step, blocking};
use crate::record::make_private;
use crate::remove::remove_tree;
use crate::runtime::SingularityRuntime;

/// The name and port by which the run reaches us, to show that it can reach something.
const CONTROL: (&str, u16) = ("control.internal", 7);
/// The run takes about a second.
const LIMIT: Duration = Duration::from_secs(45);
/// A job may have to wait for others.
const QUEUE: Duration = Duration::from_secs(300);
/// More than the program ever prints.
const OUTPUT: u64 = 1 << 20;
/// An image with nothing in it: the program is mounted into every run.
const IMAGE: &str = "localhost/examine:empty";

/// Examines this machine, under an owner of its own: neither the runs nor the connections of the
/// asking owner come near it.
///
/// The work goes on to its end, and removes what it made, if the future is dropped.
pub(crate) async fn examine(config: &SingularityConfig) -> Result<Vec<Observation>> {
    let mut config = config.clone();
    let name = format!("examine-{:016x}", rand::random::<u64>());
    config.owner = Owner::new(name.as_str())?;
    let image = config.folder.join(&name);
    let owned = config.folder.join("owners").join(&name);
    config.images.insert(ImageRef::parse(IMAGE)?, image.clone());
    let work = tokio::spawn(async move {
        let made = image.clone();
        blocking(move || {
            ["proc", "dev", "etc", "tmp"]
                .iter()
                .try_for_each(|name| make_private(&made.join(name)))
                .map_err(Step::host(format!("{} cannot be made", made.display())))
        })
        .await?;
        let seen = Box::pin(in_a_run(config)).await;
        blocking(move || {
            for folder in [image, owned] {
                let what = format!("{} cannot be removed", folder.display());
                remove_tree(&folder).map_err(Step::host(what))?;
            }
            Ok(())
        })
        .await?;
        seen
    });
    work.await.map_err(|error| {
        Error::new(ErrorKind::Unexpected, "the examination broke").with_source(error)
    })?
}

async fn in_a_run(config: SingularityConfig) -> Result<Vec<Observation>> {
    let limit = match config.slurm {
        Some(_) => QUEUE + LIMIT,
        None => LIMIT,
    };
    let runtime = Box::pin(SingularityRuntime::connect(config)).await?;
    let id = RunId::new("examine")?;
    let seen = tokio::time::timeout(limit, Box::pin(observe(&runtime, &id, limit))).await;
    let forced = CleanupOptions::default().with_force(true);
    let removed = runtime.cleanup(&id, forced).await;
    let seen =
        seen.map_err(|_| Error::new(ErrorKind::Timeout, "the examining run did not end"))??;
    removed?;
    Ok(seen)
}

async fn observe(
    runtime: &SingularityRuntime,
    id: &RunId,
    limit: Duration,
) -> Result<Vec<Observation>> {
    let image = runtime
        .resolve(&ImageRef::parse(IMAGE)?, PullPolicy::Never)
        .await?;
    let (host, port) = CONTROL;
    let control = format!("{host}:{port}");
    let mut spec = RunSpec::new(image).with_deadline(SystemTime::now() + limit);
    let command = [crate::plan::HELPER, "examine", "--control", &control];
    // Without a way for jobs to reach us there is nothing that it could show to be reachable.
    if runtime.capabilities().egress {
        let grant = EgressGrant::new(GrantName::new("control")?, host, port)?;
        spec = spec.with_egress(grant).with_command(command);
    } else {
        spec = spec.with_command(command.into_iter().take(2));
    }
    let mut connections = runtime.connections();
    runtime.run(id, &spec).await?;
    let serving = async {
        while let Some(connection) = connections.next().await {
            if let Ok(connection) = connection {
                // What the run makes of the answer is what it tells.
                let _ = answer(connection).await;
            }
        }
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = runtime.wait(id) => ended?,
        never = serving => never,
    };
    let printed = runtime.logs_bytes(id, OUTPUT).await?;
    match ended.outcome() {
        Some(Outcome::Exited(0)) => parse(&printed),
        other => {
            let words = String::from_utf8_lossy(&printed);
            let message = format!("the examining run ended with {other:?} {words}");
            Err(Error::new(ErrorKind::Unexpected, message))
        }
    }
}

/// Gives back the one line that it is sent.
async fn answer(connection: Connection) -> std::io::Result<()> {
    let mut stream = BufReader::new(connection.io);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let io = stream.get_mut();
    io.write_all(line.as_bytes()).await?;
    io.shutdown().await
}

#[derive(serde::Deserialize)]
struct Line {
    name: String,
    holds: bool,
    seen: String,
}

fn parse(printed: &[u8]) -> Result<Vec<Observation>> {
    let lines: Vec<Line> = serde_json::from_slice(printed).map_err(|error| {
        let message = "the examining run's words were not understood";
        Error::new(ErrorKind::Protocol, message).with_source(error)
    })?;
    let observed = |Line { name, holds, seen }| Observation::new(name, holds, seen);
    Ok(lines.into_iter().map(observed).collect())
}
