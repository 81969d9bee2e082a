//! A table read from CSV and kept as parquet. Types and missing values are taken as
//! pandas takes them, as far as numbers go.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet_core::basic::{LogicalType, Repetition, Type as PhysicalType};
use parquet_core::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet_core::errors::ParquetError;
use parquet_core::file::properties::WriterProperties;
use parquet_core::file::reader::{FileReader, SerializedFileReader};
use parquet_core::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet_core::record::Field;
use parquet_core::schema::types::Type;

use crate::Result;

/// What pandas' `read_csv` takes for a missing value by default.
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// The values of a column, each present or missing.
#[derive(Debug, PartialEq)]
pub(crate) enum Values {
    Whole(Vec<Option<i64>>),
    Real(Vec<Option<f64>>),
    Text(Vec<Option<String>>),
}

impl Values {
    /// The narrowest type that all of the column's text fits in.
    fn of(text: Vec<Option<String>>) -> Self {
        fn all<T: std::str::FromStr>(text: &[Option<String>]) -> Option<Vec<Option<T>>> {
            text.iter()
                .map(|value| match value {
                    None => Some(None),
                    Some(value) => value.trim().parse().ok().map(Some),
                })
                .collect()
        }
        // Nothing at all says nothing about whole numbers; pandas makes it real ones.
        if text.iter().any(Option::is_some)
            && let Some(whole) = all(&text)
        {
            return Self::Whole(whole);
        }
        match all(&text) {
            Some(real) => Self::Real(real),
            None => Self::Text(text),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Whole(values) => values.len(),
            Self::Real(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    fn parquet_type(&self, name: &str) -> std::result::Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Self::Whole(_) => (PhysicalType::INT64, None),
            Self::Real(_) => (PhysicalType::DOUBLE, None),
            Self::Text(_) => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
        };
        Type::primitive_type_builder(name, physical)
            .with_logical_type(logical)
            .with_repetition(Repetition::OPTIONAL)
            .build()
    }

    fn write(
        &self,
        column: &mut SerializedColumnWriter<'_>,
    ) -> std::result::Result<(), ParquetError> {
        fn parts<S, T>(values: &[Option<S>], of: impl Fn(&S) -> T) -> (Vec<T>, Vec<i16>) {
            let levels = values
                .iter()
                .map(|value| i16::from(value.is_some()))
                .collect();
            (values.iter().flatten().map(of).collect(), levels)
        }
        match self {
            Self::Whole(values) => {
                let (values, levels) = parts(values, |value| *value);
                column
                    .typed::<Int64Type>()
                    .write_batch(&values, Some(&levels), None)?;
            }
            Self::Real(values) => {
                let (values, levels) = parts(values, |value| *value);
                column
                    .typed::<DoubleType>()
                    .write_batch(&values, Some(&levels), None)?;
            }
            Self::Text(values) => {
                let (values, levels) = parts(values, |value| ByteArray::from(value.as_str()));
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&values, Some(&levels), None)?;
            }
        }
        Ok(())
    }
}

/// Columns of one length, in order.
#[derive(Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) columns: Vec<(String, Values)>,
}

impl Table {
    pub(crate) fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, values)| values.len())
    }
}

/// Read a CSV file whose first line names the columns.
pub(crate) fn read_csv(path: &Path) -> Result<Table> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    table_from_csv(file)
}

fn table_from_csv(source: impl std::io::Read) -> Result<Table> {
    let mut reader = csv::Reader::from_reader(source);
    let names = column_names(reader.headers()?);
    let mut text: Vec<Vec<Option<String>>> = names.iter().map(|_| Vec::new()).collect();
    for record in reader.records() {
        for (column, value) in text.iter_mut().zip(&record?) {
            column.push((!MISSING.contains(&value)).then(|| value.to_owned()));
        }
    }
    Ok(Table {
        columns: names
            .into_iter()
            .zip(text.into_iter().map(Values::of))
            .collect(),
    })
}

/// Names as pandas gives them where the header has none, or one twice.
fn column_names(header: &csv::StringRecord) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, name) in header.iter().enumerate() {
        let name = if i == 0 {
            name.trim_start_matches('\u{feff}')
        } else {
            name
        };
        let plain = if name.is_empty() {
            format!("Unnamed: {i}")
        } else {
            name.to_owned()
        };
        let mut unique = plain.clone();
        let mut times = 0;
        while names.contains(&unique) {
            times += 1;
            unique = format!("{plain}.{times}");
        }
        names.push(unique);
    }
    names
}

/// Write into the file that is there already, all rows in one group.
pub(crate) fn write_parquet(table: &Table, path: &Path) -> Result<()> {
    let fields = table
        .columns
        .iter()
        .map(|(name, values)| values.parquet_type(name).map(Arc::new))
        .collect::<std::result::Result<_, _>>()?;
    let schema = Type::group_type_builder("schema")
        .with_fields(fields)
        .build()?;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties)?;
    let mut group = writer.next_row_group()?;
    for (_, values) in &table.columns {
        let mut column = group
            .next_column()?
            .ok_or("parquet has fewer columns than the table")?;
        values.write(&mut column)?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

/// The numbers of each column, missing ones left out; none where a value is no number.
pub(crate) fn read_parquet(path: &Path) -> Result<Vec<(String, Option<Vec<f64>>)>> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let reader = SerializedFileReader::new(file)?;
    let fields = reader.metadata().file_metadata().schema().get_fields();
    let mut columns: Vec<(String, Option<Vec<f64>>)> = fields
        .iter()
        .map(|field| (field.name().to_owned(), Some(Vec::new())))
        .collect();
    for row in reader.get_row_iter(None)? {
        for ((_, numbers), (_, field)) in columns.iter_mut().zip(row?.get_column_iter()) {
            match (number(field), numbers.as_mut()) {
                (Some(Some(x)), Some(numbers)) => numbers.push(x),
                (None, _) => *numbers = None,
                _ => {}
            }
        }
    }
    // pandas keeps the index of rows in columns of such names.
    columns.retain(|(name, _)| !name.starts_with("__index_level_"));
    Ok(columns)
}

/// A number or a missing one; nothing where the field is something else.
#[expect(clippy::cast_precision_loss, reason = "pandas computes in f64, too")]
fn number(field: &Field) -> Option<Option<f64>> {
    let x = match *field {
        Field::Null => return Some(None),
        Field::Byte(x) => f64::from(x),
        Field::Short(x) => f64::from(x),
        Field::Int(x) => f64::from(x),
        Field::Long(x) => x as f64,
        Field::UByte(x) => f64::from(x),
        Field::UShort(x) => f64::from(x),
        Field::UInt(x) => f64::from(x),
        Field::ULong(x) => x as f64,
        Field::Float(x) => f64::from(x),
        Field::Double(x) => x,
        _ => return None,
    };
    // pandas counts what is not a number as missing.
    Some((!x.is_nan()).then_some(x))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn types_and_missing_values_survive_csv_and_parquet() {
        let csv = "\u{feff}id,ph.ecog,note,empty,\n1,1.5,\"a, b\",,7\n2,NA,NaN,,8\n";
        let table = table_from_csv(csv.as_bytes()).unwrap();
        let names: Vec<_> = table
            .columns
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["id", "ph.ecog", "note", "empty", "Unnamed: 4"]);
        assert_eq!(table.columns[0].1, Values::Whole(vec![Some(1), Some(2)]));
        assert_eq!(table.columns[1].1, Values::Real(vec![Some(1.5), None]));
        assert_eq!(
            table.columns[2].1,
            Values::Text(vec![Some("a, b".into()), None])
        );
        assert_eq!(table.columns[3].1, Values::Real(vec![None, None]));
        let path = std::env::temp_dir().join(format!("v6-average-{}.parquet", std::process::id()));
        write_parquet(&table, &path).unwrap();
        let read = read_parquet(&path);
        std::fs::remove_file(&path).unwrap();
        let read = read.unwrap();
        assert_eq!(read[0], ("id".into(), Some(vec![1.0, 2.0])));
        assert_eq!(read[1], ("ph.ecog".into(), Some(vec![1.5])));
        assert_eq!(read[2], ("note".into(), None));
        assert_eq!(read[3], ("empty".into(), Some(vec![])));
    }

    #[test]
    fn a_ragged_row_is_refused() {
        assert!(table_from_csv("a,b\n1,2,3\n".as_bytes()).is_err());
    }
}
