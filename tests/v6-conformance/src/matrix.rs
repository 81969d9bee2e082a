//! The page over all reports of a folder.

use std::path::Path;
use std::process::ExitCode;

use v6_runtime_conformance::Report;
use v6_runtime_conformance::matrix::matrix;

/// Reads every `NAME.yaml` in the folder and writes `README.md`.
///
/// # Errors
/// A folder without reports; what cannot be read or written, or is no report.
pub(crate) fn write(folder: &Path) -> Result<ExitCode, String> {
    let page = folder.join("README.md");
    std::fs::write(&page, page_of(folder)?).map_err(|error| at(&page, &error))?;
    Ok(ExitCode::SUCCESS)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn page_of(folder: &Path) -> Result<String, String> {
    let mut reports = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| at(folder, &error))? {
        let path = entry.map_err(|error| at(folder, &error))?.path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
        let report = Report::from_yaml(&text).map_err(|error| at(&path, &error))?;
        reports.push((name.into_owned(), report));
    }
    if reports.is_empty() {
        return Err(format!("{} has no report", folder.display()));
    }
    reports.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(matrix(&reports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_that_of_the_reports() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance");
        let written = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
        assert!(
            page_of(&folder) == Ok(written),
            "docs/conformance/README.md is out of date: v6-conformance matrix docs/conformance"
        );
    }
}
