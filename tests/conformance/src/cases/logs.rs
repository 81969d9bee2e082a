//! What programs print.

use futures_util::TryStreamExt;
use v6_runtime::{Capabilities, LogOptions, LogStream, Outcome, Runtime};

use crate::bench::{Bench, run_id};
use crate::case::{self, equal, holds};
use crate::probe::pattern;

case::cases! {
    logs_are_byte_exact ["LOG-1"]: "the log is byte for byte what the program printed, lines of any length, also after the end";
    #[needs(|c: &Capabilities| c.logs.split.then_some(()).ok_or("logs.split"))]
    both_streams_are_told_apart ["LOG-1"]: "standard output and standard error are told apart";
    #[needs(|c: &Capabilities| c.logs.since.then_some(()).ok_or("logs.since"))]
    a_position_is_a_place ["LOG-2"]: "reading on from the position of any chunk gives exactly what follows it, also in another process";
    #[needs(|c: &Capabilities| c.logs.follow.then_some(()).ok_or("logs.follow"))]
    following_ends_with_the_run ["LOG-2"]: "a followed log gives lines as they come, and ends with the run";
    a_log_can_be_limited ["LOG-2"]: "no more bytes come than were asked for";
    a_flood_ends_like_any_run ["LIFE-4", "ANY-2"]: "a run that prints more than anybody keeps ends as it would without a reader, and with one that has stalled";
}

async fn logs_are_byte_exact(bench: Bench) -> case::Outcome {
    for size in [0, 1, 63, 64, 65, 16_384, 70_000, 1_000_000] {
        let id = run_id(&format!("log-{size}"));
        bench
            .finish(&id, &bench.spec(&format!("stdout {size}")).await?)
            .await?;
        let log = bench.log(&id).await?;
        holds(
            &format!("{size} bytes came back as {}", log.len()),
            log == pattern(size),
        )?;
    }
    for size in [16_383, 16_384, 16_385, 50_000] {
        let id = run_id(&format!("line-{size}"));
        let line = "x".repeat(size);
        let spec = bench.spec("").await?.with_args(["echo", &line]);
        bench.finish(&id, &spec).await?;
        let log = bench.log(&id).await?;
        let wanted = format!("{line}\n");
        holds(
            &format!("a line of {size} came back as {}", log.len()),
            log == wanted.as_bytes(),
        )?;
    }
    Ok(())
}

async fn both_streams_are_told_apart(bench: Bench) -> case::Outcome {
    let id = run_id("both");
    let spec = bench
        .spec("echo to-out then echo-err to-err then stdout 5000 then stderr 6000")
        .await?;
    bench.finish(&id, &spec).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut chunks = bench.runtime.logs(&id, LogOptions::default());
    while let Some(chunk) = chunks.try_next().await? {
        match chunk.stream {
            LogStream::Stdout => out.extend_from_slice(&chunk.bytes),
            LogStream::Stderr => err.extend_from_slice(&chunk.bytes),
            LogStream::Merged => return Err("a chunk is of neither stream".into()),
        }
    }
    equal(
        "standard output",
        out,
        [b"to-out\n", &pattern(5000)[..]].concat(),
    )?;
    equal(
        "standard error",
        err,
        [b"to-err\n", &pattern(6000)[..]].concat(),
    )?;
    Ok(())
}

async fn a_position_is_a_place(bench: Bench) -> case::Outcome {
    let id = run_id("position");
    bench.finish(&id, &bench.spec("tick 40 1").await?).await?;
    let all: Vec<_> = bench
        .runtime
        .logs(&id, LogOptions::default())
        .try_collect()
        .await?;
    holds("the log is empty", !all.is_empty())?;
    let again = bench.restarted().await?;
    for (number, chunk) in all.iter().enumerate() {
        let options = LogOptions::default().with_since(chunk.position.clone());
        let rest: Vec<_> = again.runtime.logs(&id, options).try_collect().await?;
        let got: Vec<u8> = rest.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
        let wanted: Vec<u8> = all[number + 1..]
            .iter()
            .flat_map(|chunk| chunk.bytes.to_vec())
            .collect();
        holds(
            &format!(
                "after chunk {number}: {} bytes, not {}",
                got.len(),
                wanted.len()
            ),
            got == wanted,
        )?;
    }
    Ok(())
}

async fn following_ends_with_the_run(bench: Bench) -> case::Outcome {
    let id = run_id("followed");
    bench
        .runtime
        .run(
            &id,
            &bench
                .spec("echo first then sleep 700 then echo last")
                .await?,
        )
        .await?;
    bench.running(&id).await?;
    bench.printed(&id, "first").await?;
    holds(
        "the run was over when its first line came",
        !bench.runtime.status(&id).await?.phase.is_finished(),
    )?;
    let options = LogOptions::default().with_follow(true);
    let chunks: Vec<_> = bench.runtime.logs(&id, options).try_collect().await?;
    let got: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| chunk.bytes.to_vec())
        .collect();
    equal("the whole log", got, b"first\nlast\n".to_vec())?;
    Ok(())
}

async fn a_log_can_be_limited(bench: Bench) -> case::Outcome {
    let id = run_id("limited");
    bench
        .finish(&id, &bench.spec("stdout 100000").await?)
        .await?;
    let options = LogOptions::default().with_limit_bytes(12_345);
    let chunks: Vec<_> = bench.runtime.logs(&id, options).try_collect().await?;
    let got: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| chunk.bytes.to_vec())
        .collect();
    holds(&format!("{} bytes came", got.len()), got == pattern(12_345))?;
    Ok(())
}

async fn a_flood_ends_like_any_run(bench: Bench) -> case::Outcome {
    let id = run_id("flood");
    bench
        .runtime
        .run(&id, &bench.spec("stdout 30000000 then exit 8").await?)
        .await?;
    bench.running(&id).await?;
    // Opened, read once, and left alone.
    let mut stalled = bench
        .runtime
        .logs(&id, LogOptions::default().with_follow(true));
    let _ = stalled.try_next().await;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(8)),
    )?;
    Ok(())
}
