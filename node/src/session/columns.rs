//! Looks at a parquet file that an algorithm has written, and tells its columns in
//! pyarrow's words, as the Python node does (protocol 4.6).
//!
//! Only the footer is read, so that memory does not depend on the data: it must parse, and
//! every column chunk that it names must lie within the file. Damaged pages are found by
//! the step that reads them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use arrow_schema::{DataType, Field, IntervalUnit, TimeUnit};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaDataReader;

use super::error::{At, SessionError};
use super::footer;
use crate::hq::Column;

/// Largest footer that is looked at, in bytes.
pub const MAX_FOOTER: u64 = 8 << 20;

/// The columns of the parquet file `path`, which is a regular file that nobody changes.
///
/// # Errors
/// [`SessionError::NotParquet`] with a reason for people, [`SessionError::Io`]. The file is
/// hostile: a panic of the parser is an error like others.
pub async fn columns_of(path: &Path) -> Result<Vec<Column>, SessionError> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || read(&path)).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => Err(SessionError::NotParquet(
            "the parser failed on it".to_owned(),
        )),
        Err(error) => Err(SessionError::Internal(error.to_string())),
    }
}

fn not(reason: impl ToString) -> SessionError {
    SessionError::NotParquet(reason.to_string())
}

fn read(path: &Path) -> Result<Vec<Column>, SessionError> {
    let mut file = File::open(path).at("cannot open", path)?;
    let about = file.metadata().at("cannot look at", path)?;
    if !about.is_file() {
        return Err(not("it is not a regular file"));
    }
    let length = about.len();
    if length == 0 {
        return Err(not("the file is empty"));
    }
    if length < 12 {
        return Err(not("the file is too short"));
    }
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8)).at("cannot read", path)?;
    file.read_exact(&mut tail).at("cannot read", path)?;
    let [a, b, c, d, magic @ ..] = tail;
    if magic != *b"PAR1" {
        return Err(not("it does not end as parquet files do"));
    }
    let size = u64::from(u32::from_le_bytes([a, b, c, d]));
    if size > length - 12 {
        return Err(not("the footer is longer than the file"));
    }
    if size > MAX_FOOTER {
        return Err(not(format!("the footer has more than {MAX_FOOTER} bytes")));
    }
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(length - 8 - size))
        .at("cannot read", path)?;
    file.read_exact(&mut bytes).at("cannot read", path)?;
    footer::check(&bytes).map_err(not)?;
    let metadata = ParquetMetaDataReader::decode_metadata(&bytes).map_err(not)?;
    for group in metadata.row_groups() {
        for chunk in group.columns() {
            let start = chunk
                .dictionary_page_offset()
                .unwrap_or(chunk.data_page_offset());
            let end = start.checked_add(chunk.compressed_size());
            let within = start >= 0 && end.is_some_and(|end| end >= start && end as u64 <= length);
            if !within {
                return Err(not("its columns lie outside the file"));
            }
        }
    }
    let about = metadata.file_metadata();
    let schema =
        parquet_to_arrow_schema(about.schema_descr(), about.key_value_metadata()).map_err(not)?;
    Ok(schema
        .fields()
        .iter()
        .map(|field| Column {
            name: field.name().clone(),
            dtype: dtype(field),
        })
        .collect())
}

fn unit(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

/// A child as pyarrow writes it inside a nested type.
fn child(field: &Field) -> String {
    let not_null = if field.is_nullable() { "" } else { " not null" };
    format!("{}: {}{not_null}", field.name(), dtype(field))
}

/// The type in pyarrow's words (`str(field.type)`).
fn dtype(field: &Field) -> String {
    let ordered = field.dict_is_ordered().unwrap_or_default();
    let extension = field
        .metadata()
        .get("ARROW:extension:name")
        .map(String::as_str);
    if let Some(known @ ("arrow.uuid" | "arrow.json" | "arrow.bool8" | "arrow.opaque")) = extension
    {
        return format!("extension<{known}>");
    }
    // pyarrow names a map's entries after the column, and says so.
    if let DataType::Map(entries, sorted) = field.data_type()
        && let DataType::Struct(pair) = entries.data_type()
    {
        let pair: Vec<String> = pair.iter().map(|field| dtype(field)).collect();
        let sorted = if *sorted { ", keys_sorted" } else { "" };
        return format!("map<{}{sorted} ('{}')>", pair.join(", "), field.name());
    }
    type_text(field.data_type(), ordered)
}

fn type_text(kind: &DataType, ordered: bool) -> String {
    let plain = |kind: &DataType| type_text(kind, false);
    let text = match kind {
        DataType::Null => "null",
        DataType::Boolean => "bool",
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt8 => "uint8",
        DataType::UInt16 => "uint16",
        DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Float16 => "halffloat",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        // Parquet has dates in days only, and pyarrow does not turn them into another type.
        DataType::Date32 | DataType::Date64 => "date32[day]",
        DataType::Binary => "binary",
        DataType::LargeBinary => "large_binary",
        DataType::BinaryView => "binary_view",
        DataType::Utf8 => "string",
        DataType::LargeUtf8 => "large_string",
        DataType::Utf8View => "string_view",
        DataType::Interval(IntervalUnit::YearMonth) => "month_interval",
        DataType::Interval(IntervalUnit::DayTime) => "day_time_interval",
        DataType::Interval(IntervalUnit::MonthDayNano) => "month_day_nano_interval",
        DataType::Timestamp(of, None) => return format!("timestamp[{}]", unit(*of)),
        DataType::Timestamp(of, Some(zone)) => {
            return format!("timestamp[{}, tz={zone}]", unit(*of));
        }
        DataType::Time32(of) => return format!("time32[{}]", unit(*of)),
        DataType::Time64(of) => return format!("time64[{}]", unit(*of)),
        DataType::Duration(of) => return format!("duration[{}]", unit(*of)),
        DataType::FixedSizeBinary(size) => return format!("fixed_size_binary[{size}]"),
        DataType::List(item) => return format!("list<{}>", child(item)),
        DataType::LargeList(item) => return format!("large_list<{}>", child(item)),
        DataType::ListView(item) => return format!("list_view<{}>", child(item)),
        DataType::LargeListView(item) => return format!("large_list_view<{}>", child(item)),
        DataType::FixedSizeList(item, size) => {
            return format!("fixed_size_list<{}>[{size}]", child(item));
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| child(field)).collect();
            return format!("struct<{}>", fields.join(", "));
        }
        // Read from parquet, a map has a field around it; see `dtype`.
        DataType::Map(entries, _) => return plain(entries.data_type()),
        // pyarrow reads text and bytes back as dictionaries, and nothing else.
        DataType::Dictionary(_, value)
            if !(value.is_string()
                || matches!(**value, DataType::Binary | DataType::LargeBinary)) =>
        {
            return plain(value);
        }
        DataType::Dictionary(index, value) => {
            let (index, value) = (plain(index), plain(value));
            let ordered = u8::from(ordered);
            return format!("dictionary<values={value}, indices={index}, ordered={ordered}>");
        }
        DataType::Decimal32(digits, scale) => return format!("decimal32({digits}, {scale})"),
        DataType::Decimal64(digits, scale) => return format!("decimal64({digits}, {scale})"),
        DataType::Decimal128(digits, scale) => return format!("decimal128({digits}, {scale})"),
        DataType::Decimal256(digits, scale) => return format!("decimal256({digits}, {scale})"),
        DataType::RunEndEncoded(ends, values) => {
            let (ends, values) = (plain(ends.data_type()), plain(values.data_type()));
            return format!("run_end_encoded<run_ends: {ends}, values: {values}>");
        }
        // Parquet has no unions.
        DataType::Union(..) => "union",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[derive(serde::Deserialize)]
    struct Recorded {
        parquet_base64: String,
        columns: Vec<Column>,
    }

    fn recorded() -> (Vec<u8>, Vec<Column>) {
        let Recorded {
            parquet_base64,
            columns,
        } = serde_json::from_str(include_str!("../../tests/data/parquet-types.json")).unwrap();
        (
            crate::crypto::decode_lenient(parquet_base64.as_bytes()).unwrap(),
            columns,
        )
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn names_types_as_pyarrow_does() {
        let (bytes, want) = recorded();
        assert!(want.len() > 30);
        let got = columns_of(file(&bytes).path()).await.unwrap();
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn what_is_not_parquet() {
        let (bytes, _) = recorded();
        let last = bytes.len() - 1;
        for (broken, why) in [
            (Vec::new(), "the file is empty"),
            (b"a,b\n1,2\n3,4\n5,6\n".to_vec(), "does not end as parquet"),
            (bytes[..last].to_vec(), "does not end as parquet"),
            (bytes[bytes.len() / 2..].to_vec(), ""),
            (
                [
                    vec![0; 4],
                    u32::MAX.to_le_bytes().to_vec(),
                    b"PAR1".to_vec(),
                ]
                .concat(),
                "longer than the file",
            ),
        ] {
            let error = columns_of(file(&broken).path()).await.unwrap_err();
            assert!(matches!(error, SessionError::NotParquet(_)), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(columns_of(Path::new("/nowhere/at all")).await.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// One damaged byte anywhere in the footer: columns or an error, nothing else.
        #[test]
        fn a_damaged_footer_is_survived(at in 0usize..4096, value: u8) {
            let (mut bytes, _) = recorded();
            let size = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
            let place = bytes.len() - 8 - size + at % size;
            bytes[place] = value;
            let file = file(&bytes);
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                match columns_of(file.path()).await {
                    Ok(_) | Err(SessionError::NotParquet(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            });
        }
    }
}
