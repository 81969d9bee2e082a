//! Files in and out.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use v6_runtime::{
    Access, Capabilities, ErrorKind, InputStream, Mount, MountSource, Outcome, Output, Runtime,
    RuntimeExt, Secret,
};

use crate::bench::{Bench, output, path, run_id};
use crate::case::{self, equal, fails, holds};
use crate::probe::pattern;

const MIB: usize = 1 << 20;
/// Time for a program to start that should not.
const A_WHILE: Duration = Duration::from_millis(500);

fn files(c: &Capabilities) -> Result<(), &'static str> {
    c.outputs.file.then_some(()).ok_or("outputs.file")
}

fn folders(c: &Capabilities) -> Result<(), &'static str> {
    c.outputs.folder.then_some(()).ok_or("outputs.folder")
}

case::cases! {
    inputs_are_byte_exact ["RUN-1"]: "given files, inline, secret and streamed, have exactly the bytes that were given";
    inputs_cannot_be_changed ["OUT-2"]: "a given file can be neither written, replaced nor removed by the run";
    #[needs(|c: &Capabilities| c.mounts.stream.then_some(()).ok_or("mounts.stream"))]
    a_wrong_stream_is_refused ["RUN-1"]: "a stream that is longer or shorter than it said fails the call of run, and no run starts";
    #[needs(|c: &Capabilities| c.mounts.scratch.then_some(()).ok_or("mounts.scratch"))]
    scratch_is_writable ["FLOOR-5"]: "a scratch folder is empty and can be written";
    #[needs(files)]
    outputs_are_byte_exact ["OUT-1"]: "an output is collected byte for byte, from nothing to many MiB";
    #[needs(files)]
    an_unwritten_output_is_empty ["OUT-2"]: "an output that the program never wrote is an empty file: it was made beforehand";
    #[needs(files)]
    an_output_cannot_be_replaced ["OUT-2", "OUT-3"]: "the file of an output can be neither removed nor replaced by a link, a folder or a fifo";
    #[needs(files)]
    an_output_has_a_limit ["OUT-3"]: "no more than the limit of an output is ever given out";
    #[needs(files)]
    outputs_wait_for_the_end ["OUT-1"]: "collect is NotReady before the end, and NotFound for an output that was not declared";
    #[needs(folders)]
    a_folder_is_collected ["OUT-4"]: "a folder output is a tar of what the run left in it, without links and without what was mounted read-only";
    #[needs(folders)]
    a_folder_can_begin_with_files ["OUT-4"]: "given files below a folder output with write access are the run's to change, and part of the output";
    other_runs_files_are_out_of_reach ["FLOOR-6"]: "a run finds no file of another run";
}

fn limit(bytes: u64) -> Result<NonZeroU64, &'static str> {
    NonZeroU64::new(bytes).ok_or("a limit is not zero")
}

async fn inputs_are_byte_exact(bench: Bench) -> case::Outcome {
    let id = run_id("inputs");
    let streams = bench.runtime.capabilities().mounts.stream;
    let inline = Mount::new(MountSource::Inline(pattern(1000)), path("/in/inline"));
    let empty = Mount::new(MountSource::Inline(Bytes::new()), path("/in/empty"));
    let text = String::from_utf8_lossy(&pattern(777)).into_owned();
    let secret = Mount::new(
        MountSource::Secret(Secret::new(text)),
        path("/in/deep/er/secret"),
    );
    let mut words =
        "verify /in/inline 1000 then verify /in/empty 0 then verify /in/deep/er/secret 777"
            .to_owned();
    let large = 5 * MIB + 13;
    if streams {
        words.push_str(&format!(" then verify /in/stream {large}"));
    }
    let mut spec = bench
        .spec(&words)
        .await?
        .with_mount(inline)
        .with_mount(empty)
        .with_mount(secret);
    if streams {
        let stream = InputStream::once(large as u64, std::io::Cursor::new(pattern(large)));
        spec = spec.with_mount(Mount::new(MountSource::Stream(stream), path("/in/stream")));
    }
    let status = bench.finish(&id, &spec).await?;
    let log = bench.log(&id).await?;
    let what = format!("its end ({})", String::from_utf8_lossy(&log));
    equal(&what, status.outcome().cloned(), Some(Outcome::Exited(0)))?;
    Ok(())
}

async fn inputs_cannot_be_changed(bench: Bench) -> case::Outcome {
    let id = run_id("fixed");
    let words = "try write /in/file 3 then try remove /in/file then try rename /in/file /in/other \
                 then verify /in/file 1000";
    let mount = Mount::new(MountSource::Inline(pattern(1000)), path("/in/file"));
    let status = bench
        .finish(&id, &bench.spec(words).await?.with_mount(mount))
        .await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    holds(
        &format!("something was allowed: {log}"),
        !log.contains("\"ok\":true"),
    )?;
    Ok(())
}

async fn a_wrong_stream_is_refused(bench: Bench) -> case::Outcome {
    for (id, said) in [("longer", 999), ("shorter", 1001)] {
        let stream = InputStream::once(said, std::io::Cursor::new(pattern(1000)));
        let mount = Mount::new(MountSource::Stream(stream), path("/in/file"));
        let spec = bench.spec("exit 0").await?.with_mount(mount);
        let refused = bench.runtime.run(&run_id(id), &spec).await;
        fails(id, refused, ErrorKind::InvalidSpec)?;
        // One that has started all the same does not show at once.
        tokio::time::sleep(A_WHILE).await;
        if let Ok(status) = bench.runtime.status(&run_id(id)).await {
            holds("the run has started", status.phase.rank() == 0)?;
        }
    }
    Ok(())
}

async fn scratch_is_writable(bench: Bench) -> case::Outcome {
    let id = run_id("scratch");
    let mount = Mount::new(MountSource::Scratch(None), path("/work"));
    let spec = bench
        .spec("write /work/file 4096 then verify /work/file 4096")
        .await?
        .with_mount(mount);
    let status = bench.finish(&id, &spec).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    Ok(())
}

async fn outputs_are_byte_exact(bench: Bench) -> case::Outcome {
    let mut sizes = vec![0, 1, 511, 512, 513, 65_536, MIB, 8 * MIB + 1];
    if std::env::var_os("V6_TESTS_LONG").is_some() {
        sizes.push(64 * MIB);
    }
    for size in sizes {
        let id = run_id(&format!("output-{size}"));
        let declared = Output::file(path("/out/result"), limit(64 << 20)?);
        let spec = bench.spec(&format!("write /out/result {size}")).await?;
        bench
            .finish(&id, &spec.with_output(output("result"), declared))
            .await?;
        let bytes = bench
            .runtime
            .collect_bytes(&id, &output("result"), 64 * MIB)
            .await?;
        holds(
            &format!("{size} bytes came back as {}", bytes.len()),
            bytes == pattern(size),
        )?;
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

/// Names and contents of the regular files in a tar, and its folders with an empty content.
fn unpack(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    use std::io::Read;
    let mut found = Vec::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| e.to_string())?;
        let name = entry
            .path()
            .map_err(|e| e.to_string())?
            .to_string_lossy()
            .trim_end_matches('/')
            .to_owned();
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(format!("{name} is a {kind:?}"));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|e| e.to_string())?;
        if kind.is_file() {
            found.push((name, content));
        }
    }
    found.sort();
    Ok(found)
}

async fn a_folder_is_collected(bench: Bench) -> case::Outcome {
    let id = run_id("folder");
    let words = "verify /out/given 100 then mkdir /out/sub then write /out/sub/file 700 then write /out/top 3 \
                 then symlink /etc/passwd /out/link then mkfifo /out/fifo then write /out/empty 0";
    let declared = Output::folder(path("/out"), limit(1 << 20)?);
    let given = Mount::new(MountSource::Inline(pattern(100)), path("/out/given"));
    let spec = bench
        .spec(words)
        .await?
        .with_output(output("all"), declared)
        .with_mount(given);
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({log})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let bytes = bench
        .runtime
        .collect_bytes(&id, &output("all"), MIB)
        .await?;
    let wanted = vec![
        ("empty".to_owned(), Vec::new()),
        ("sub/file".to_owned(), pattern(700).to_vec()),
        ("top".to_owned(), pattern(3).to_vec()),
    ];
    equal("the files", unpack(&bytes)?, wanted)?;
    Ok(())
}

async fn a_folder_can_begin_with_files(bench: Bench) -> case::Outcome {
    let id = run_id("begun");
    let words = "verify /out/kept 100 then verify /out/deep/changed 100 then write /out/deep/changed 7 \
                 then remove /out/dropped";
    let declared = Output::folder(path("/out"), limit(1 << 20)?);
    let mut spec = bench
        .spec(words)
        .await?
        .with_output(output("all"), declared);
    for name in ["kept", "deep/changed", "dropped"] {
        let target = path(&format!("/out/{name}"));
        let mount = Mount::new(MountSource::Inline(pattern(100)), target);
        spec = spec.with_mount(mount.with_access(Access::ReadWrite));
    }
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({log})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let bytes = bench
        .runtime
        .collect_bytes(&id, &output("all"), MIB)
        .await?;
    let wanted = vec![
        ("deep/changed".to_owned(), pattern(7).to_vec()),
        ("kept".to_owned(), pattern(100).to_vec()),
    ];
    equal("the files", unpack(&bytes)?, wanted)?;
    Ok(())
}

async fn other_runs_files_are_out_of_reach(bench: Bench) -> case::Outcome {
    let declared = |size| Ok::<_, &'static str>(Output::folder(path("/out"), limit(size)?));
    let first = bench
        .spec("write /out/secret 10")
        .await?
        .with_output(output("all"), declared(1000)?);
    bench.finish(&run_id("one"), &first).await?;
    let second = bench
        .spec("try cat /out/secret")
        .await?
        .with_output(output("all"), declared(1000)?);
    bench.finish(&run_id("two"), &second).await?;
    let log = String::from_utf8_lossy(&bench.log(&run_id("two")).await?).into_owned();
    holds(&format!("it read {log}"), log.contains("\"ok\":false"))?;
    let chunks: Vec<Bytes> = bench
        .runtime
        .collect(&run_id("two"), &output("all"))
        .try_collect()
        .await?;
    equal("its own files", unpack(&chunks.concat())?, Vec::new())?;
    Ok(())
}
