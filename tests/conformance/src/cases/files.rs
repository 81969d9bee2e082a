//! Files out.

use std::num::NonZeroU64;

use futures_util::TryStreamExt;
use v6_runtime::{ErrorKind, Outcome, Output, RunId, RunSpec, Runtime, RuntimeExt};

use super::inputs::GROWTH;
use super::needs;
use crate::bench::{Bench, output, path, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::child::{Task, can_measure};
use crate::probe::{Pattern, pattern};

const MIB: usize = 1 << 20;

case::cases! {
    #[needs(needs::files)]
    outputs_are_byte_exact ["OUT-1"]: "an output is collected byte for byte, from nothing to many MiB";
    #[needs(needs::files)]
    an_unwritten_output_is_empty ["OUT-2"]: "an output that the program never wrote is an empty file: it was made beforehand";
    #[needs(needs::files)]
    an_output_cannot_be_replaced ["OUT-2", "OUT-3"]: "the file of an output can be neither removed nor replaced by a link, a folder or a fifo";
    #[needs(needs::files)]
    an_output_has_a_limit ["OUT-3"]: "no more than the limit of an output is ever given out";
    #[needs(needs::files)]
    outputs_wait_for_the_end ["OUT-1"]: "collect is NotReady before the end, and NotFound for an output that was not declared";
    #[needs(needs::files)]
    collecting_takes_constant_memory ["ANY-2"]: "the memory of a process that collects an output of 64 MiB does not grow with it";
    #[needs(needs::files)]
    an_output_of_holes_has_a_limit ["OUT-3"]: "a file counts by its size: one of holes that is larger than its limit is not given out";
    #[needs(needs::files)]
    an_output_can_be_collected_again ["OUT-1"]: "an output can be collected any number of times, also at once and in another process, after any end of the run";
}

pub(crate) fn limit(bytes: u64) -> Result<NonZeroU64, Failure> {
    NonZeroU64::new(bytes).ok_or_else(|| "a limit is not zero".into())
}

/// The spec with an output `result`, the file `/out/result`.
pub(crate) fn with_result(spec: RunSpec, most: u64) -> Result<RunSpec, Failure> {
    let declared = Output::file(path("/out/result"), limit(most)?);
    Ok(spec.with_output(output("result"), declared))
}

/// Collects the output `result`, holding no more than a piece of it. How many bytes it has, and
/// whether they are the pattern's.
pub(crate) async fn collected(
    bench: &Bench,
    id: &RunId,
) -> Result<(usize, bool), v6_runtime::Error> {
    let mut chunks = bench.runtime.collect(id, &output("result"));
    let mut wanted = Pattern::new();
    let (mut size, mut right) = (0, true);
    while let Some(chunk) = chunks.try_next().await? {
        right &= wanted.is_next(&chunk);
        size += chunk.len();
    }
    Ok((size, right))
}

/// Fails unless the output `result` is so many bytes of the pattern.
pub(crate) async fn collects(bench: &Bench, id: &RunId, size: usize) -> Result<(), Failure> {
    equal("the output", collected(bench, id).await?, (size, true))
}

async fn outputs_are_byte_exact(bench: Bench) -> case::Outcome {
    let large = bench.large();
    for size in [0, 1, 511, 512, 513, 65_536, MIB, large / 8 + 1, large] {
        let id = run_id(&format!("output-{size}"));
        let spec = bench.spec(&format!("write /out/result {size}")).await?;
        let spec = with_result(spec, large as u64)?;
        bench.done(&id, &spec).await?;
        collects(&bench, &id, size).await?;
        bench.clean(&id).await?;
    }
    Ok(())
}

async fn an_unwritten_output_is_empty(bench: Bench) -> case::Outcome {
    let id = run_id("unwritten");
    let declared = Output::file(path("/out/result"), limit(1000)?);
    let spec = bench
        .spec("exit 7")
        .await?
        .with_output(output("result"), declared);
    bench.finish(&id, &spec).await?;
    let bytes = bench
        .runtime
        .collect_bytes(&id, &output("result"), MIB)
        .await?;
    equal("its bytes", bytes.len(), 0)?;
    Ok(())
}

async fn an_output_cannot_be_replaced(bench: Bench) -> case::Outcome {
    let id = run_id("replaced");
    let words = "try remove /out/result then try symlink /etc/passwd /out/result then try mkdir /out/result \
                 then try mkfifo /out/result then try write /tmp/x 5 then try rename /tmp/x /out/result \
                 then write /out/result 10";
    let declared = Output::file(path("/out/result"), limit(1000)?);
    let spec = bench
        .spec(words)
        .await?
        .with_output(output("result"), declared);
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({log})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let bytes = bench
        .runtime
        .collect_bytes(&id, &output("result"), MIB)
        .await?;
    equal("its bytes", bytes, pattern(10))?;
    Ok(())
}

async fn an_output_has_a_limit(bench: Bench) -> case::Outcome {
    let id = run_id("too-much");
    let declared = Output::file(path("/out/result"), limit(100_000)?);
    let words = "try write /out/result 300000 then exit 0";
    let spec = bench
        .spec(words)
        .await?
        .with_output(output("result"), declared);
    bench.finish(&id, &spec).await?;
    match bench
        .runtime
        .collect_bytes(&id, &output("result"), MIB)
        .await
    {
        Ok(bytes) => holds(
            &format!("{} bytes were given out", bytes.len()),
            bytes.len() <= 100_000,
        )?,
        Err(error) => equal("the error", error.kind(), ErrorKind::Quota)?,
    }
    Ok(())
}

async fn outputs_wait_for_the_end(bench: Bench) -> case::Outcome {
    let id = run_id("early");
    let declared = Output::file(path("/out/result"), limit(1000)?);
    let spec = bench
        .spec("sleep 1000")
        .await?
        .with_output(output("result"), declared);
    bench.runtime.run(&id, &spec).await?;
    let early = bench
        .runtime
        .collect_bytes(&id, &output("result"), MIB)
        .await;
    fails("before the end", early, ErrorKind::NotReady)?;
    bench.ended(&id).await?;
    let other = bench
        .runtime
        .collect_bytes(&id, &output("other"), MIB)
        .await;
    fails("another output", other, ErrorKind::NotFound)?;
    Ok(())
}

async fn collecting_takes_constant_memory(bench: Bench) -> case::Outcome {
    bench.outlives_us()?;
    can_measure()?;
    let id = run_id("large");
    let size = 64 * MIB;
    let spec = bench.spec(&format!("write /out/result {size}")).await?;
    let spec = with_result(spec, size as u64)?;
    bench.done(&id, &spec).await?;
    let task = Task::Collect { id: id.to_string() };
    let mut reader = bench.child(task).await?;
    let grown: u64 = reader.done().await?.parse().map_err(|_| "no number")?;
    reader.kill().await?;
    holds(
        &format!("it became {grown} bytes larger with a file of {size}"),
        grown <= GROWTH,
    )?;
    Ok(())
}

async fn an_output_of_holes_has_a_limit(bench: Bench) -> case::Outcome {
    let id = run_id("holes");
    let large = bench.large();
    let words = format!("try sparse /out/result {large}");
    let spec = with_result(bench.spec(&words).await?, MIB as u64)?;
    bench.finish(&id, &spec).await?;
    let result = output("result");
    match bench.runtime.collect_bytes(&id, &result, large).await {
        Ok(bytes) => holds(
            &format!("{} bytes were given out", bytes.len()),
            bytes.len() <= MIB,
        )?,
        Err(error) => equal("the error", error.kind(), ErrorKind::Quota)?,
    }
    Ok(())
}

async fn an_output_can_be_collected_again(bench: Bench) -> case::Outcome {
    let id = run_id("again");
    let spec = bench.spec("write /out/result 100000 then exit 3").await?;
    let spec = with_result(spec, MIB as u64)?;
    bench.finish(&id, &spec).await?;
    let again = bench.restarted().await?;
    let all = [&bench, &again, &bench, &again].map(|bench| collects(bench, &id, 100_000));
    for collected in futures_util::future::join_all(all).await {
        collected?;
    }
    collects(&again, &id, 100_000).await?;
    Ok(())
}
