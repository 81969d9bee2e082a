//! Arguments, environment, working directory: literally.

use v6_runtime::{EnvValue, Outcome, Runtime, Secret};

use crate::bench::{Bench, path, run_id};
use crate::case::{self, equal, holds};

case::cases! {
    arguments_are_literal ["RUN-8"]: "arguments reach the program as they are: quotes, line ends, dollar signs, empty ones, 100 KB";
    environment_is_literal ["RUN-8"]: "environment variables reach the program as they are, beside those of the image";
    secrets_reach_the_program_alone ["ANY-4"]: "a secret variable reaches the program, and is in no status, listing or Debug";
    the_working_directory_applies ["RUN-8"]: "the program starts in the working directory that the spec names";
    standard_input_is_at_its_end ["RUN-8"]: "the program's standard input is at its end, and nothing ever comes from it";
}

const AWKWARD: [&str; 9] = [
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
    words.push(&long);
    words.push("");
    words.push("last");
    let spec = bench.spec("").await?.with_args(words.iter().copied());
    bench.finish(&id, &spec).await?;
    let wanted = format!("{}\n", words[1..].join(" "));
    equal(
        "what it printed",
        bench.log(&id).await?.as_ref(),
        wanted.as_bytes(),
    )?;
    Ok(())
}

async fn environment_is_literal(bench: Bench) -> case::Outcome {
    for (number, value) in AWKWARD.iter().enumerate() {
        let id = run_id(&format!("env-{number}"));
        let spec = bench.spec("env PROBED").await?.with_env("PROBED", *value);
        bench.finish(&id, &spec).await?;
        equal(
            "what it printed",
            bench.log(&id).await?.as_ref(),
            format!("{value}\n").as_bytes(),
        )?;
    }
    Ok(())
}

async fn secrets_reach_the_program_alone(bench: Bench) -> case::Outcome {
    const VALUE: &str = "swordfish 'quoted' $x é";
    let id = run_id("secret");
    let secret = EnvValue::Secret(Secret::new(VALUE));
    let spec = bench
        .spec("env PROBED then sleep 300")
        .await?
        .with_env("PROBED", secret);
    holds(
        "the secret is in Debug of the spec",
        !format!("{spec:?}").contains("swordfish"),
    )?;
    bench.runtime.run(&id, &spec).await?;
    let status = bench.running(&id).await?;
    let shown = format!("{status:?} {:?}", bench.runtime);
    holds(
        "the secret is in Debug of the status",
        !shown.contains("swordfish"),
    )?;
    let engine = bench.leftovers().await?.join(" ");
    holds(
        "the secret is in the engine's listing",
        !engine.contains("swordfish"),
    )?;
    bench.ended(&id).await?;
    equal(
        "what it printed",
        bench.log(&id).await?.as_ref(),
        format!("{VALUE}\n").as_bytes(),
    )?;
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
