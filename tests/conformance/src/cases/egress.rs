//! Granted connections.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v6_runtime::{Connection, EgressGrant, GrantName, Outcome, RunId, RunSpec, Runtime};

use super::needs::egress;
use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, holds};

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
    granted_names_are_loopback ["NET-2"]: "each granted host resolves to a loopback address, two hosts to two, and no other name resolves";
    #[needs(egress)]
    connections_name_their_run ["NET-3", "NET-5"]: "connections of two runs with the same grants arrive under the run that opened them, with its bytes";
    #[needs(egress)]
    without_grants_nothing_arrives ["NET-1", "NET-3"]: "a run without grants opens no connection, also to what another run is granted at the time";
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

/// Answers every connection with the name of its grant, or by echo.
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
                let answer = format!("{}\n", connection.grant.name);
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

/// Waits for the end of a run whose connection was answered. If it is dropped the probe has an
/// empty answer, and no error.
async fn answered(bench: &Bench, id: &RunId) -> Result<(), Failure> {
    let status = bench.ended(id).await?;
    let log = bench.text(id).await?;
    let outcome = status.outcome();
    equal(
        &format!("its end ({log})"),
        outcome,
        Some(&Outcome::Exited(0)),
    )?;
    holds(
        &format!("the answer is not in {log}"),
        log.contains("service"),
    )
}

async fn a_granted_connection_arrives(bench: Bench) -> case::Outcome {
    let serving = serve(&bench, true);
    let spec = bench.spec("connect service.example 8080 hello").await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    let log = finished(&bench, "calling", &spec).await?;
    holds(
        &format!("the answer is not in {log}"),
        log.contains("service"),
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
    answered(&bench, &id).await?;
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
    answered(&again, &id).await?;
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
    let words = format!("exchange service.example 8080 {}", bench.large() / 2);
    let spec = bench.spec(&words).await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    finished(&bench, "much", &spec).await?;
    serving.abort();
    Ok(())
}

async fn granted_names_are_loopback(bench: Bench) -> case::Outcome {
    let words = "resolve one.example then resolve two.example then try resolve three.example \
                 then try resolve example";
    let spec = bench.spec(words).await?;
    let spec = spec
        .with_egress(grant("first", "one.example", 443)?)
        .with_egress(grant("second", "two.example", 443)?)
        .with_egress(grant("third", "one.example", 80)?);
    let log = finished(&bench, "resolving", &spec).await?;
    let mut seen = Vec::new();
    for line in log.lines() {
        let report: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("{error} in {line}"))?;
        if report["step"] == "try" {
            holds(
                &format!("another name resolves: {log}"),
                report["ok"] == false,
            )?;
            continue;
        }
        let addresses = report["addresses"].as_array().cloned().unwrap_or_default();
        holds(
            &format!("it has no address: {report}"),
            !addresses.is_empty(),
        )?;
        for address in addresses {
            let text = address.as_str().unwrap_or_default().to_owned();
            holds(
                &format!("{report} is no loopback"),
                text.starts_with("127."),
            )?;
            holds(
                &format!("{report} is another host's too"),
                !seen.contains(&text),
            )?;
            seen.push(text);
        }
    }
    Ok(())
}

async fn connections_name_their_run(bench: Bench) -> case::Outcome {
    const EACH: usize = 4;
    let mut connections = bench.runtime.connections();
    let serving = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 2 * EACH {
            let Some(Ok(mut connection)) = connections.next().await else {
                break;
            };
            let mut line = Vec::new();
            let mut byte = [0; 1];
            while connection.io.read_exact(&mut byte).await.is_ok() && byte != *b"\n" {
                line.push(byte[0]);
            }
            let _ = connection.io.write_all(b"thanks\n").await;
            let _ = connection.io.shutdown().await;
            let said = String::from_utf8_lossy(&line).into_owned();
            let grant = connection.grant.name.to_string();
            seen.push((connection.run.to_string(), grant, said));
        }
        seen
    });
    let runs = ["left", "right"].map(|id| {
        let bench = bench.clone();
        async move {
            let call = format!("connect service.example 8080 {id}");
            let spec = bench.spec(&vec![call; EACH].join(" then ")).await?;
            let spec = spec.with_egress(grant("service", "service.example", 8080)?);
            finished(&bench, id, &spec).await
        }
    });
    for run in futures_util::future::join_all(runs).await {
        run?;
    }
    let seen = tokio::time::timeout(Duration::from_secs(30), serving).await;
    let seen = seen.map_err(|_| "not every connection arrived")?;
    let seen = seen.map_err(|error| error.to_string())?;
    equal("connections", seen.len(), 2 * EACH)?;
    for (run, grant, said) in seen {
        equal("the run that a connection tells", &run, &said)?;
        equal("its grant", grant.as_str(), "service")?;
    }
    Ok(())
}

async fn without_grants_nothing_arrives(bench: Bench) -> case::Outcome {
    let mut connections = bench.runtime.connections();
    let granted = run_id("granted");
    let spec = bench.spec("sleep 60000").await?;
    let spec = spec.with_egress(grant("service", "service.example", 8080)?);
    bench.runtime.run(&granted, &spec).await?;
    bench.running(&granted).await?;
    let words = "try connect service.example 8080 x then try connect 127.0.1.1 8080 x \
                 then try connect 127.0.0.1 8080 x then try resolve service.example";
    let log = finished(&bench, "without", &bench.spec(words).await?).await?;
    equal(
        &format!("refusals in {log}"),
        log.matches("\"ok\":false").count(),
        4,
    )?;
    let arrived = tokio::time::timeout(Duration::from_millis(300), connections.next()).await;
    holds(
        &format!("there is a connection: {arrived:?}"),
        arrived.is_err(),
    )?;
    Ok(())
}
