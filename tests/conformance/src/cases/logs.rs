//! What programs print.

use futures_util::TryStreamExt;
use v6_runtime::{Capabilities, ErrorKind, LogOptions, LogStream, Runtime, RuntimeExt};

use super::needs;
use crate::bench::{Bench, run_id};
use crate::case::{self, equal, fails, holds};
use crate::child::{Task, can_measure};
use crate::probe::{all_values, pattern};

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
    #[needs(|c: &Capabilities| c.logs.binary.then_some(()).ok_or("logs.binary"))]
    binary_logs_are_byte_exact ["LOG-1"]: "bytes of all 256 values, printed without line ends, are in the log as they were printed";
    a_log_holds_both_streams ["LOG-1"]: "the log has all that was printed on standard output and on standard error, told apart or not";
    a_log_can_be_read_while_it_is_written ["LOG-1", "STAT-1"]: "the log of a running program is a beginning of what it prints, and reading it changes nothing";
    a_stalled_reader_delays_nobody ["LIFE-4", "ANY-2"]: "while one reader of a log has stalled, another gets it whole, and other runs end";
    a_log_ends_with_cleanup ["LOG-1", "CLEAN-2"]: "the log of a run that was cleaned up is NotFound, and one that is followed meanwhile ends";
    #[needs(needs::follow)]
    reading_logs_takes_constant_memory ["ANY-2"]: "the memory of a process that reads a log of 8 MiB does not grow with it";
}

async fn logs_are_byte_exact(bench: Bench) -> case::Outcome {
    let sizes = [0, 1, 63, 64, 65, 16_384, 70_000, 1_000_000].map(|size| {
        let words = ["stdout".to_owned(), size.to_string()];
        (format!("log-{size}"), words, pattern(size))
    });
    // Lines without an end in sight: some engines keep them in parts.
    let lines = [16_383, 16_384, 16_385, 50_000].map(|size| {
        let line = "x".repeat(size);
        let wanted = format!("{line}\n").into();
        (format!("line-{size}"), ["echo".to_owned(), line], wanted)
    });
    let runs = sizes.into_iter().chain(lines).map(|(id, words, wanted)| {
        let bench = bench.clone();
        async move {
            let id = run_id(&id);
            let spec = bench.spec("").await?.with_args(words);
            bench.finish(&id, &spec).await?;
            let log = bench.log(&id).await?;
            let what = format!("{id}: {} bytes came, not {}", log.len(), wanted.len());
            holds(&what, log == wanted)
        }
    });
    for run in futures_util::future::join_all(runs).await {
        run?;
    }
    Ok(())
}

async fn both_streams_are_told_apart(bench: Bench) -> case::Outcome {
    let id = run_id("both");
    // More of each than any buffer, in turn.
    let words = "echo to-out then echo-err to-err then stdout 300000 then stderr 400000 \
                 then stdout 100 then stderr 200000 then echo out-end then echo-err err-end";
    bench.done(&id, &bench.spec(words).await?).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut chunks = bench.runtime.logs(&id, LogOptions::default());
    while let Some(chunk) = chunks.try_next().await? {
        match chunk.stream {
            LogStream::Stdout => out.extend_from_slice(&chunk.bytes),
            LogStream::Stderr => err.extend_from_slice(&chunk.bytes),
            LogStream::Merged => return Err("a chunk is of neither stream".into()),
        }
    }
    let wanted = |begin: &[u8], sizes: [usize; 2], end: &[u8]| {
        [begin, &pattern(sizes[0]), &pattern(sizes[1]), end].concat()
    };
    holds(
        &format!(
            "{} bytes of standard output are not those printed",
            out.len()
        ),
        out == wanted(b"to-out\n", [300_000, 100], b"out-end\n"),
    )?;
    holds(
        &format!(
            "{} bytes of standard error are not those printed",
            err.len()
        ),
        err == wanted(b"to-err\n", [400_000, 200_000], b"err-end\n"),
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
                .spec("echo first then sleep 2500 then echo last")
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
    for (id, step, reads) in [("unread", "stdout", false), ("stalled", "stderr", true)] {
        let id = run_id(id);
        let words = format!("{step} {} then exit 8", bench.large() / 2);
        bench.runtime.run(&id, &bench.spec(&words).await?).await?;
        bench.running(&id).await?;
        // Opened, read once, and left alone.
        let follow = bench.runtime.capabilities().logs.follow;
        let options = LogOptions::default().with_follow(follow);
        let mut stalled = bench.runtime.logs(&id, options);
        if reads {
            let _ = stalled.try_next().await;
        }
        bench.ends_with(&id, 8).await?;
        bench.clean(&id).await?;
    }
    Ok(())
}

async fn binary_logs_are_byte_exact(bench: Bench) -> case::Outcome {
    for size in [255, 256, 70_000, 1_000_000] {
        let id = run_id(&format!("binary-{size}"));
        let spec = bench.spec(&format!("bytes {size}")).await?;
        bench.finish(&id, &spec).await?;
        bench.ends_with(&id, 0).await?;
        let log = bench.log(&id).await?;
        let wanted = all_values(size);
        if log != wanted {
            let same = log.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            let came = log.len();
            let what = format!("of {size} bytes {came} came, and are others after {same}");
            return Err(what.into());
        }
    }
    Ok(())
}

async fn a_log_holds_both_streams(bench: Bench) -> case::Outcome {
    let id = run_id("both");
    let words = "echo to-out then stderr 6400 then echo-err to-err then stdout 3200";
    bench.done(&id, &bench.spec(words).await?).await?;
    let log = bench.text(&id).await?;
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    let (out, err) = (pattern(3200), pattern(6400));
    let printed = [&out[..], &err[..], b"to-out\nto-err\n"].concat();
    let printed = String::from_utf8_lossy(&printed);
    let mut wanted: Vec<&str> = printed.lines().collect();
    wanted.sort_unstable();
    equal("the lines, in order", lines, wanted)?;
    Ok(())
}

async fn a_log_can_be_read_while_it_is_written(bench: Bench) -> case::Outcome {
    let id = run_id("written");
    let spec = bench.spec("tick 100 10 then exit 3").await?;
    bench.runtime.run(&id, &spec).await?;
    let wanted: String = (0..100).map(|n| format!("tick {n}\n")).collect();
    bench.running(&id).await?;
    let mut before = 0;
    while !bench.runtime.status(&id).await?.phase.is_finished() {
        let log = bench.log(&id).await?;
        holds(
            &format!("{log:?} after {before} bytes"),
            wanted.as_bytes().starts_with(&log) && log.len() >= before,
        )?;
        before = log.len();
        tokio::time::sleep(crate::bench::LOOK_AGAIN * 5).await;
    }
    bench.ends_with(&id, 3).await?;
    equal("the whole log", bench.text(&id).await?, wanted)?;
    Ok(())
}

async fn a_stalled_reader_delays_nobody(bench: Bench) -> case::Outcome {
    let size = bench.large() / 8;
    let id = run_id("read");
    let words = format!("stdout {size} then exit 8");
    bench.runtime.run(&id, &bench.spec(&words).await?).await?;
    bench.running(&id).await?;
    let follow = bench.runtime.capabilities().logs.follow;
    let options = LogOptions::default().with_follow(follow);
    let mut stalled = bench.runtime.logs(&id, options);
    let _ = stalled.try_next().await;
    bench.ends_with(&id, 8).await?;
    let log = bench.log(&id).await?;
    let what = format!("another reader got {} of {size} bytes", log.len());
    holds(&what, log == pattern(size))?;
    let other = run_id("other");
    let spec = bench.spec("exit 3").await?;
    bench.runtime.run(&other, &spec).await?;
    bench.ends_with(&other, 3).await?;
    bench.clean(&id).await?;
    drop(stalled);
    Ok(())
}

async fn a_log_ends_with_cleanup(bench: Bench) -> case::Outcome {
    let id = run_id("removed");
    let spec = bench.spec("echo words then sleep 60000").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    bench.printed(&id, "words").await?;
    let follow = bench.runtime.capabilities().logs.follow;
    let options = LogOptions::default().with_follow(follow);
    let mut chunks = bench.runtime.logs(&id, options);
    let _ = chunks.try_next().await?;
    bench.tidy().await?;
    let rest = async {
        // How it ends is not said; that it does is.
        while let Ok(Some(_)) = chunks.try_next().await {}
    };
    let limit = std::time::Duration::from_secs(30);
    let ended = tokio::time::timeout(limit, rest).await;
    ended.map_err(|_| "the log of a run that is gone does not end")?;
    let read = bench.runtime.logs_bytes(&id, 1000).await;
    fails("logs", read, ErrorKind::NotFound)?;
    Ok(())
}

async fn reading_logs_takes_constant_memory(bench: Bench) -> case::Outcome {
    bench.outlives_us()?;
    can_measure()?;
    let id = run_id("large");
    // As much as any engine keeps of it.
    let size = 8 << 20;
    let spec = bench.spec(&format!("stdout {size}")).await?;
    bench.finish(&id, &spec).await?;
    let task = Task::ReadLogs { id: id.to_string() };
    let mut reader = bench.child(task).await?;
    let told = reader.done().await?;
    reader.kill().await?;
    let numbers: Vec<u64> = told.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [grown, read] = numbers[..] else {
        return Err(format!("the reader told {told:?}").into());
    };
    equal("bytes that were read", read, size)?;
    holds(
        &format!("it became {grown} bytes larger with a log of {size}"),
        grown <= size / 2,
    )?;
    Ok(())
}
