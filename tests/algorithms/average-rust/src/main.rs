//! The federated average of `average-python` once more, by a program that uses none of
//! vantage6's libraries: it knows only the files and the environment that a vantage6 5
//! node gives to an algorithm, and the proxy's part of HQ's API.
//!
//! Functions (`ALGORITHM_METHOD`), each with the action (`FUNCTION_ACTION`) it is for:
//!
//! - `read_csv`, `data_extraction`: the CSV file at `DATABASE_URI` becomes a parquet file;
//! - `partial`, `federated_compute`: the moments of each numeric column of a dataframe;
//! - `central`, `central_compute`: has `partial` computed everywhere and combines it.

mod environment;
mod hub;
mod moments;
mod table;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use environment::variable;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("average: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let method = variable("ALGORITHM_METHOD")?;
    let action = variable("FUNCTION_ACTION")?;
    let input = fs::read(variable("INPUT_FILE")?)?;
    // None of the functions takes an argument; a node's `{}` must still be JSON.
    let _: Value = serde_json::from_slice(&input)
        .map_err(|error| format!("the arguments are not JSON: {error}"))?;
    let output = variable("OUTPUT_FILE")?;
    eprintln!("average: {method} as {action}");
    match (method.as_str(), action.as_str()) {
        ("read_csv", "data_extraction") => {
            let source = variable("DATABASE_URI")?;
            let table = table::read_csv(Path::new(&source))?;
            table::write_parquet(&table, Path::new(&output))?;
            eprintln!(
                "average: {} rows of {} columns",
                table.rows(),
                table.columns.len()
            );
        }
        ("partial", "federated_compute") => write_json(&output, &partial()?)?,
        ("central", "central_compute") => write_json(&output, &central()?)?,
        _ => return Err(format!("there is no {method} for the action {action}").into()),
    }
    Ok(())
}

fn write_json(path: &str, value: &Value) -> Result<()> {
    // The file is there and stays the same file: a rename would be lost on the node.
    Ok(fs::write(path, value.to_string())?)
}

/// The first dataframe that the task names; a group holds names between commas.
fn partial() -> Result<Value> {
    let requested = variable("USER_REQUESTED_DATAFRAMES")?;
    let name = requested
        .split([';', ','])
        .next()
        .filter(|name| !name.is_empty());
    let name = name.ok_or("the task names no dataframe")?;
    let file = Path::new(&variable("SESSION_FOLDER")?).join(format!("{name}.parquet"));
    let columns: Map<String, Value> = table::read_parquet(&file)?
        .into_iter()
        .map(|(name, numbers)| {
            (
                name,
                numbers.map_or(Value::Null, |n| moments::Moments::of(&n).to_json()),
            )
        })
        .collect();
    Ok(json!({ "columns": columns }))
}

fn central() -> Result<Value> {
    let hub = hub::Hub::from_environment()?;
    let organizations = hub.organizations()?;
    eprintln!("average: subtask for organizations {organizations:?}");
    let task = hub.create_task("partial", &organizations)?;
    hub.wait(task)?;
    let results = hub.results(task)?;
    if results.len() != organizations.len() {
        let (got, all) = (results.len(), organizations.len());
        return Err(format!("{got} of {all} organizations gave a result").into());
    }
    let parts = results
        .iter()
        .map(|result| result.get("columns").and_then(Value::as_object))
        .collect::<Option<Vec<_>>>()
        .ok_or("a result has no columns")?;
    Ok(json!({ "columns": moments::combine(&parts)? }))
}
