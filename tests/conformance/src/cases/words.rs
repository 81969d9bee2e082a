//! Arguments, environment, working directory: literally.

use futures_util::TryStreamExt;
use v6_runtime::{
    EnvValue, ErrorKind, Mount, MountSource, Outcome, RunId, RunSpec, Runtime, Secret,
};

use super::needs;
use crate::bench::{Bench, path, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::probe::pattern;

case::cases! {
    arguments_are_literal ["RUN-8"]: "arguments reach the program as they are: quotes, line ends, dollar signs, empty ones, 100 KB";
    environment_is_literal ["RUN-8"]: "environment variables reach the program as they are, beside those of the image";
    secrets_reach_the_program_alone ["ANY-4"]: "a secret variable reaches the program, and is in no status, listing, error or Debug";
    secret_files_reach_the_program_alone ["ANY-4"]: "a secret file reaches the program, and is in no status, listing, error or Debug";
    secrets_are_in_no_refusal ["ANY-4", "RUN-6"]: "the error that refuses a spec has no secret of it";
    #[needs(needs::scratch)]
    a_scratch_folder_can_be_worked_in ["RUN-8", "FLOOR-5"]: "a scratch folder that is the working directory can be written";
    the_working_directory_is_literal ["RUN-8"]: "the working directory is taken as it is: blanks, quotes, dollar signs";
    the_working_directory_applies ["RUN-8"]: "the program starts in the working directory that the spec names";
    standard_input_is_at_its_end ["RUN-8"]: "the program's standard input is at its end, and nothing ever comes from it";
}

const AWKWARD: [&str; 12] = [
    "",
    "$$",
    "%s %n {0}",
    "a b",
    "'single'",
    "\"double\"",
    "$HOME `id` $(id)",
    "line\nend",
    "\\back\\slash",
    "é病",
    "--",
    "*",
];

async fn arguments_are_literal(bench: Bench) -> case::Outcome {
    let id = run_id("words");
    let long = "x".repeat(100_000);
    let mut words = vec!["echo"];
    words.extend(AWKWARD);
    words.extend([&long, "", "last"]);
    let spec = bench.spec("").await?.with_args(words.iter().copied());
    let log = bench.done(&id, &spec).await?;
    equal(
        "what it printed",
        log,
        format!("{}\n", words[1..].join(" ")),
    )?;
    Ok(())
}

async fn environment_is_literal(bench: Bench) -> case::Outcome {
    let id = run_id("env");
    let long = "x".repeat(100_000);
    let values = AWKWARD.iter().copied().chain([long.as_str()]);
    let mut spec = bench.spec("").await?;
    let (mut words, mut wanted) = (Vec::new(), String::new());
    for (number, value) in values.enumerate() {
        // Names are any text without an equals sign.
        let name = match number % 3 {
            0 => format!("PROBED_{number}"),
            1 => format!("probed.{number}"),
            _ => format!("PROBED-{number}"),
        };
        words.extend(["env".to_owned(), name.clone(), "then".to_owned()]);
        wanted.push_str(&format!("{value}\n"));
        spec = spec.with_env(name, value);
    }
    words.extend(["exit", "0"].map(str::to_owned));
    let log = bench.done(&id, &spec.with_args(words)).await?;
    equal("what it printed", log, wanted)?;
    Ok(())
}

/// Fails if the secret is in what the runtime or its engine shows of a run.
async fn is_kept(bench: &Bench, spec: &RunSpec, id: &RunId) -> Result<(), Failure> {
    let mut shown = vec![("Debug of the spec", format!("{spec:?}"))];
    let status = bench.runtime.status(id).await?;
    let encoded = serde_json::to_string(&status).map_err(|error| error.to_string())?;
    shown.push(("the status", format!("{status:?} {encoded}")));
    shown.push((
        "the runtime",
        format!("{:?} {}", bench.runtime, bench.runtime),
    ));
    let listed: Vec<_> = bench.runtime.list().try_collect().await?;
    shown.push(("the list", format!("{listed:?}")));
    shown.push(("the engine's listing", bench.leftovers().await?.join(" ")));
    let other = bench.spec("exit 0").await?;
    let conflict = fails(
        "another spec",
        bench.runtime.run(id, &other).await,
        ErrorKind::Conflict,
    )?;
    shown.push(("an error", format!("{conflict:?} {conflict}")));
    for (what, text) in shown {
        holds(
            &format!("the secret is in {what}"),
            !text.contains("swordfish"),
        )?;
    }
    Ok(())
}

async fn secrets_reach_the_program_alone(bench: Bench) -> case::Outcome {
    const VALUE: &str = "swordfish 'quoted' $x é";
    let id = run_id("secret");
    let secret = EnvValue::Secret(Secret::new(VALUE));
    let spec = bench.spec("env PROBED then sleep 500").await?;
    let spec = spec.with_env("PROBED", secret);
    bench.runtime.run(&id, &spec).await?;
    is_kept(&bench, &spec, &id).await?;
    bench.running(&id).await?;
    is_kept(&bench, &spec, &id).await?;
    bench.ends_with(&id, 0).await?;
    is_kept(&bench, &spec, &id).await?;
    equal(
        "what it printed",
        bench.text(&id).await?,
        format!("{VALUE}\n"),
    )?;
    Ok(())
}

async fn secret_files_reach_the_program_alone(bench: Bench) -> case::Outcome {
    let id = run_id("secret");
    let text = "swordfish\n".repeat(100);
    let source = MountSource::Secret(Secret::new(text.clone()));
    let spec = bench.spec("cat /in/secret then sleep 500").await?;
    let spec = spec.with_mount(Mount::new(source, path("/in/secret")));
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    is_kept(&bench, &spec, &id).await?;
    bench.ends_with(&id, 0).await?;
    is_kept(&bench, &spec, &id).await?;
    equal("what it printed", bench.text(&id).await?, text)?;
    Ok(())
}

async fn secrets_are_in_no_refusal(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 0").await?;
    let secret = |text: &str| EnvValue::Secret(Secret::new(text));
    let mounted =
        |text: String, at: &str| Mount::new(MountSource::Secret(Secret::new(text)), path(at));
    let wrong = [
        spec.clone().with_env("A", secret("sword\0fish swordfish")),
        spec.clone().with_env("A=B", secret("swordfish")),
        spec.clone()
            .with_mount(mounted("swordfish".repeat(200_000), "/in/x")),
        spec.clone()
            .with_mount(mounted("swordfish".into(), "/proc/x")),
    ];
    for spec in wrong {
        let refused = bench.runtime.run(&run_id("wrong"), &spec).await;
        let error = fails("a wrong spec", refused, ErrorKind::InvalidSpec)?;
        let text = format!("{error:?} {error}");
        holds("the secret is in the error", !text.contains("swordfish"))?;
    }
    Ok(())
}

async fn the_working_directory_is_literal(bench: Bench) -> case::Outcome {
    let id = run_id("workdir");
    let folder = "/work dir/$HOME 'and' \"é\"";
    let source = MountSource::Inline(pattern(5));
    let mount = Mount::new(source, path(&format!("{folder}/given")));
    let spec = bench.spec("verify given 5").await?;
    let spec = spec.with_mount(mount).with_workdir(path(folder));
    bench.done(&id, &spec).await?;
    Ok(())
}

async fn a_scratch_folder_can_be_worked_in(bench: Bench) -> case::Outcome {
    let id = run_id("workdir");
    let mount = Mount::new(MountSource::Scratch(None), path("/work"));
    let spec = bench.spec("write here 5 then verify /work/here 5").await?;
    let spec = spec.with_mount(mount).with_workdir(path("/work"));
    bench.done(&id, &spec).await?;
    Ok(())
}

async fn the_working_directory_applies(bench: Bench) -> case::Outcome {
    let id = run_id("workdir");
    let spec = bench
        .spec("write here 5 then verify /tmp/here 5")
        .await?
        .with_workdir(path("/tmp"));
    let status = bench.finish(&id, &spec).await?;
    let log = bench.log(&id).await?;
    let what = format!("its end ({})", String::from_utf8_lossy(&log));
    equal(&what, status.outcome().cloned(), Some(Outcome::Exited(0)))?;
    Ok(())
}

async fn standard_input_is_at_its_end(bench: Bench) -> case::Outcome {
    let id = run_id("stdin");
    let spec = bench.spec("cat /dev/stdin then exit 3").await?;
    let status = bench.finish(&id, &spec).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(3)),
    )?;
    Ok(())
}
