//! Folders out, and what may be in them.

use bytes::Bytes;
use futures_util::TryStreamExt;
use v6_runtime::{Access, ErrorKind, Mount, MountSource, Outcome, Output, Runtime, RuntimeExt};

use super::files::limit;
use super::needs;
use crate::bench::{Bench, output, path, run_id};
use crate::case::{self, Failure, equal, holds};
use crate::probe::pattern;

const MIB: usize = 1 << 20;

case::cases! {
    #[needs(needs::folders)]
    a_folder_is_collected ["OUT-4"]: "a folder output is a tar of what the run left in it, without links and without what was mounted read-only";
    #[needs(needs::folders)]
    a_folder_can_begin_with_files ["OUT-4"]: "given files below a folder output with write access are the run's to change, and part of the output";
    #[needs(needs::folders)]
    other_runs_files_are_out_of_reach ["FLOOR-6"]: "a run finds no file of another run";
    #[needs(needs::folders)]
    any_name_is_collected ["OUT-4"]: "files in a folder output are collected under whatever names the run gave them: line ends, dashes, stars, long ones";
    #[needs(needs::folders)]
    a_hostile_folder_gives_only_its_files ["OUT-3", "OUT-4"]: "links out of a folder output, fifos, devices and hard links give no byte of anything else, and nothing that is neither file nor folder";
    #[needs(needs::folders)]
    a_folder_has_a_limit ["OUT-3"]: "a folder whose files have more bytes in all than its limit is not given out, be they holes or many small ones";
    #[needs(needs::folders)]
    a_folder_may_be_empty ["OUT-4"]: "a folder output in which the run made nothing is an archive without files";
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
    let declared = |size| Ok::<_, Failure>(Output::folder(path("/out"), limit(size)?));
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

async fn any_name_is_collected(bench: Bench) -> case::Outcome {
    let id = run_id("names");
    let long = "l".repeat(240);
    let names = [
        "two\nlines",
        "-rf",
        "*",
        " blank ",
        "tab\there",
        "é病🏥",
        "..dots..",
        "back\\slash",
        &long,
    ];
    let mut words: Vec<String> = Vec::new();
    for name in names {
        let step = ["write", &format!("/out/{name}"), "10", "then"];
        words.extend(step.map(str::to_owned));
    }
    words.extend(["exit", "0"].map(str::to_owned));
    let declared = Output::folder(path("/out"), limit(1 << 20)?);
    let spec = bench.spec("").await?.with_args(words);
    let spec = spec.with_output(output("all"), declared);
    bench.done(&id, &spec).await?;
    let all = output("all");
    let bytes = bench.runtime.collect_bytes(&id, &all, MIB).await?;
    let mut wanted = names
        .map(|name| (name.to_owned(), pattern(10).to_vec()))
        .to_vec();
    wanted.sort();
    equal("the files", unpack(&bytes)?, wanted)?;
    Ok(())
}

async fn a_hostile_folder_gives_only_its_files(bench: Bench) -> case::Outcome {
    let id = run_id("hostile");
    // The folder itself first: removing it would take what is in it along.
    let words = "try rename /out /tmp/out then try remove /out then try symlink / /out \
                 then write /out/real 700 then try symlink /etc/passwd /out/passwd then try symlink / /out/root \
                 then try symlink ../../.. /out/up then try symlink real /out/near then try mkfifo /out/fifo \
                 then try mknod /out/device then try link /out/real /out/same then try link /etc/passwd /out/hard \
                 then exit 0";
    let declared = Output::folder(path("/out"), limit(1 << 20)?);
    let spec = bench
        .spec(words)
        .await?
        .with_output(output("all"), declared);
    let log = bench.done(&id, &spec).await?;
    let all = output("all");
    let bytes = bench.runtime.collect_bytes(&id, &all, MIB).await?;
    let found = unpack(&bytes).map_err(|wrong| format!("{wrong} is in the archive ({log})"))?;
    let real = ("real".to_owned(), pattern(700).to_vec());
    holds(
        &format!("its own file is not in {found:?}"),
        found.contains(&real),
    )?;
    for (name, content) in found {
        // The second name of a file is a file of its own in an archive without links.
        let own = matches!(name.as_str(), "real" | "same");
        holds(&format!("{name} was given out"), own && content == real.1)?;
    }
    Ok(())
}

async fn a_folder_has_a_limit(bench: Bench) -> case::Outcome {
    let many: Vec<String> = (0..64)
        .map(|n| format!("try write /out/{n} 4000"))
        .collect();
    let cases = [
        ("holes", format!("try sparse /out/holes {}", bench.large())),
        ("many", many.join(" then ")),
    ];
    for (id, words) in cases {
        let id = run_id(id);
        let declared = Output::folder(path("/out"), limit(100_000)?);
        let spec = bench
            .spec(&words)
            .await?
            .with_output(output("all"), declared);
        bench.finish(&id, &spec).await?;
        let all = output("all");
        match bench.runtime.collect_bytes(&id, &all, 128 * MIB).await {
            Ok(bytes) => {
                let given: usize = unpack(&bytes)?.iter().map(|(_, bytes)| bytes.len()).sum();
                holds(
                    &format!("{id}: files of {given} bytes were given out"),
                    given <= 100_000,
                )?;
            }
            Err(error) => equal("the error", error.kind(), ErrorKind::Quota)?,
        }
    }
    Ok(())
}

async fn a_folder_may_be_empty(bench: Bench) -> case::Outcome {
    let id = run_id("empty");
    let declared = Output::folder(path("/out"), limit(1000)?);
    let spec = bench
        .spec("exit 0")
        .await?
        .with_output(output("all"), declared);
    bench.done(&id, &spec).await?;
    let all = output("all");
    let bytes = bench.runtime.collect_bytes(&id, &all, MIB).await?;
    equal("the files", unpack(&bytes)?, Vec::new())?;
    Ok(())
}
