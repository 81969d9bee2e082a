//! `session_state.parquet`: what was done in a session, with the columns and types of the
//! Python node, since other tools read it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Field;
use parquet::schema::parser::parse_message_type;

/// pyarrow reads these as `string` and `timestamp[us, tz=UTC]`.
const SCHEMA: &str = "message schema {
    optional binary action (STRING);
    optional binary file (STRING);
    optional int64 timestamp (TIMESTAMP(MICROS, true));
    optional binary message (STRING);
    optional binary dataframe (STRING);
}";

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateRow {
    /// The step type, `delete`, or empty for the beginning.
    pub action: String,
    /// The file that it wrote or removed; empty if none.
    pub file: String,
    /// When, in microseconds since 1970 (UTC).
    pub micros: i64,
    /// For people.
    pub message: String,
    /// The dataframe; empty if none.
    pub dataframe: String,
}

impl StateRow {
    pub(super) fn now(action: &str, file: &str, message: &str, dataframe: &str) -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            action: action.to_owned(),
            file: file.to_owned(),
            micros: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            message: message.to_owned(),
            dataframe: dataframe.to_owned(),
        }
    }

    /// The first row of every session.
    pub(super) fn beginning() -> Self {
        Self::now(
            "",
            "session_state.parquet",
            "Created this session file.",
            "",
        )
    }
}

/// All rows, in order.
pub(super) fn read(path: &Path) -> Result<Vec<StateRow>, ParquetError> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None)? {
        let mut out = StateRow::default();
        for (name, value) in row?.get_column_iter() {
            let place = match name.as_str() {
                "action" => &mut out.action,
                "file" => &mut out.file,
                "message" => &mut out.message,
                "dataframe" => &mut out.dataframe,
                "timestamp" => {
                    out.micros = match value {
                        Field::TimestampMicros(micros) => *micros,
                        Field::TimestampMillis(millis) => millis.saturating_mul(1000),
                        _ => 0,
                    };
                    continue;
                }
                _ => continue,
            };
            if let Field::Str(text) = value {
                place.clone_from(text);
            }
        }
        rows.push(out);
    }
    Ok(rows)
}

/// Writes a whole file and makes it durable.
pub(super) fn write(path: &Path, rows: &[StateRow]) -> Result<(), ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let file = File::create(path)?;
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file.try_clone()?, schema, properties)?;
    let levels = vec![1; rows.len()];
    let texts = |of: fn(&StateRow) -> &String| -> Vec<ByteArray> {
        rows.iter()
            .map(|row| ByteArray::from(of(row).as_str()))
            .collect()
    };
    let columns = [
        Some(texts(|row| &row.action)),
        Some(texts(|row| &row.file)),
        None,
        Some(texts(|row| &row.message)),
        Some(texts(|row| &row.dataframe)),
    ];
    let mut group = writer.next_row_group()?;
    for column in columns {
        let Some(mut out) = group.next_column()? else {
            break;
        };
        match column {
            Some(texts) => {
                out.typed::<ByteArrayType>()
                    .write_batch(&texts, Some(&levels), None)?;
            }
            None => {
                let times: Vec<i64> = rows.iter().map(|row| row.micros).collect();
                out.typed::<Int64Type>()
                    .write_batch(&times, Some(&levels), None)?;
            }
        }
        out.close()?;
    }
    group.close()?;
    writer.close()?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[tokio::test]
    async fn rows_come_back_with_the_python_node_s_types() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session_state.parquet");
        let rows = vec![
            StateRow::beginning(),
            StateRow::now("data_extraction", "d.parquet", "Session updated.", "d"),
        ];
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        let columns: Vec<_> = super::super::columns_of(&path)
            .await
            .unwrap()
            .into_iter()
            .map(|column| (column.name, column.dtype))
            .collect();
        let text = |name: &str| (name.to_owned(), "string".to_owned());
        let time = ("timestamp".to_owned(), "timestamp[us, tz=UTC]".to_owned());
        assert_eq!(
            columns,
            [
                text("action"),
                text("file"),
                time,
                text("message"),
                text("dataframe")
            ]
        );
    }

    /// A file that vantage6-node 5.0.3 wrote and appended to.
    #[test]
    fn reads_the_python_node_s_file() {
        #[derive(serde::Deserialize)]
        struct Recorded {
            parquet_base64: String,
            actions: Vec<String>,
            first_micros: i64,
        }
        let recorded: Recorded =
            serde_json::from_str(include_str!("../../tests/data/session-state-5.0.3.json"))
                .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(
            &path,
            crate::crypto::decode_lenient(recorded.parquet_base64.as_bytes()).unwrap(),
        )
        .unwrap();
        let rows = read(&path).unwrap();
        let actions: Vec<_> = rows.iter().map(|row| row.action.clone()).collect();
        assert_eq!(actions, recorded.actions);
        assert_eq!(rows[0].micros, recorded.first_micros);
        assert_eq!(rows[0].message, "Created this session file.");
    }
}
