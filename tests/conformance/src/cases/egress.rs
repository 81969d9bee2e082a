//! Granted connections.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v6_runtime::{
    Capabilities, Connection, EgressGrant, GrantName, Outcome, RunId, RunSpec, Runtime,
};

use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, holds};

fn egress(c: &Capabilities) -> Result<(), &'static str> {
    c.egress.then_some(()).ok_or("egress")
}

case::cases! {
    #[needs(egress)]
    a_granted_connection_arrives ["NET-3"]: "a connection to a grant arrives with its run and grant, and carries bytes both ways";
    #[needs(egress)]
    hosts_may_share_a_port ["NET-2"]: "two grants with one port and two hosts are told apart, and so are two ports of one host";
    #[needs(egress)]
    connections_wait_for_a_reader ["NET-4"]: "a connection that is opened while nobody reads them waits, and arrives later";
    #[needs(egress)]
    connections_reach_a_restarted_process ["NET-4"]: "connections of a run arrive at a new value of the runtime after a restart";
    #[needs(egress)]
    what_is_not_granted_is_refused ["NET-1"]: "another port of a granted host, and any other name, cannot be reached";
    #[needs(egress)]
    much_goes_through ["NET-5"]: "a connection carries many bytes in both directions at once, exactly";
}

fn grant(name: &str, host: &str, port: u16) -> Result<EgressGrant, Failure> {
    Ok(EgressGrant::new(GrantName::new(name)?, host, port)?)
}

/// Sends back all that comes.
async fn echo(connection: Connection) {
    let (mut from, mut to) = tokio::io::split(connection.io);
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Answers every connection with the names of its run and grant, or by echo.
fn serve(bench: &Bench, naming: bool) -> tokio::task::JoinHandle<Vec<(String, String)>> {
    let mut connections = bench.runtime.connections();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(Ok(mut connection)) = connections.next().await {
            seen.push((
                connection.run.to_string(),
                connection.grant.name.to_string(),
            ));
            if naming {
                let mut line = [0; 1];
                while connection.io.read_exact(&mut line).await.is_ok() && line != *b"\n" {}
                let answer = format!("{} {}\n", connection.run, connection.grant.name);
                let _ = connection.io.write_all(answer.as_bytes()).await;
                let _ = connection.io.shutdown().await;
            } else {
                tokio::spawn(echo(connection));
            }
            if seen.len() >= 64 {
                break;
            }
        }
        seen
    })
}

async fn finished(bench: &Bench, id: &str, spec: &RunSpec) -> Result<String, Failure> {
    let id = run_id(id);
    let status = bench.finish(&id, spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({log})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    Ok(log)
}

/// Waits for the end of a run that got this answer. To a probe whose connection is dropped the
/// answer is empty, and no error.
async fn answered(bench: &Bench, id: &RunId, answer: &str) -> Result<(), Failure> {
    let status = bench.ended(id).await?;
    let log = String::from_utf8_lossy(&bench.log(id).await?).into_owned();
    let end = status.outcome().cloned();
    equal(&format!("its end ({log})"), end, Some(Outcome::Exited(0)))?;
    holds(&format!("{answer:?} is not in {log}"), log.contains(answer))
}

async fn a_granted_connection_arrives(bench: Bench) -> case::Outcome {
    let serving = serve(&bench, true);
    let spec = bench.spec("connect service.example 8080 hello").await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    let log = finished(&bench, "calling", &spec).await?;
    holds(
        &format!("the answer is not in {log}"),
        log.contains("calling service"),
    )?;
    serving.abort();
    Ok(())
}

async fn hosts_may_share_a_port(bench: Bench) -> case::Outcome {
    let serving = serve(&bench, true);
    let words =
        "connect one.example 443 x then connect two.example 443 x then connect one.example 80 x";
    let spec = bench
        .spec(words)
        .await?
        .with_egress(grant("first", "one.example", 443)?)
        .with_egress(grant("second", "two.example", 443)?)
        .with_egress(grant("third", "one.example", 80)?);
    let log = finished(&bench, "sharing", &spec).await?;
    let at = |name: &str| {
        log.find(name)
            .ok_or_else(|| Failure::from(format!("no {name} in {log}")))
    };
    holds(
        &format!("the answers are mixed up: {log}"),
        at("first")? < at("second")? && at("second")? < at("third")?,
    )?;
    serving.abort();
    Ok(())
}

async fn connections_wait_for_a_reader(bench: Bench) -> case::Outcome {
    let id = run_id("waiting");
    let spec = bench
        .spec("echo begun then connect service.example 8080 x")
        .await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    bench.printed(&id, "begun").await?;
    // Time for the connection to be tried; that it was is not to be seen from here.
    tokio::time::sleep(Duration::from_millis(500)).await;
    holds(
        "the run did not wait",
        !bench.runtime.status(&id).await?.phase.is_finished(),
    )?;
    let serving = serve(&bench, true);
    answered(&bench, &id, "waiting service").await?;
    serving.abort();
    Ok(())
}

async fn connections_reach_a_restarted_process(bench: Bench) -> case::Outcome {
    let id = run_id("outliving");
    let starter = bench.restarted().await?;
    let spec = starter
        .spec("sleep 800 then connect service.example 8080 x")
        .await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    starter.runtime.run(&id, &spec).await?;
    starter.running(&id).await?;
    drop(starter);
    let again = bench.restarted().await?;
    let serving = serve(&again, true);
    answered(&again, &id, "outliving service").await?;
    serving.abort();
    Ok(())
}

async fn what_is_not_granted_is_refused(bench: Bench) -> case::Outcome {
    let serving = serve(&bench, true);
    let words = "try connect service.example 8081 x then try connect other.example 8080 x \
                 then try connect localhost 8080 x then connect service.example 8080 x";
    let spec = bench
        .spec(words)
        .await?
        .with_egress(grant("service", "service.example", 8080)?);
    let log = finished(&bench, "refused", &spec).await?;
    equal(
        &format!("refusals in {log}"),
        log.matches("\"ok\":false").count(),
        3,
    )?;
    serving.abort();
    Ok(())
}

async fn much_goes_through(bench: Bench) -> case::Outcome {
    let serving = serve(&bench, false);
    let spec = bench.spec("exchange service.example 8080 8000000").await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    finished(&bench, "much", &spec).await?;
    serving.abort();
    Ok(())
}
