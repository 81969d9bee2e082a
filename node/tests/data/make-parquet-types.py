"""Writes parquet-types.json: a table of many types, and its columns in pyarrow's words.

    python make-parquet-types.py parquet-types.json     # needs pyarrow and pandas
"""

import base64
import io
import json
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

types = [pa.null(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(),
         pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
         pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary(4),
         pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"),
         *(pa.timestamp(u) for u in ("s", "ms", "us", "ns")),
         *(pa.timestamp(u, "UTC") for u in ("s", "ms", "us", "ns")), pa.timestamp("ns", "Europe/Amsterdam"),
         pa.duration("us"), pa.duration("ns"), pa.decimal128(10, 2), pa.decimal256(40, 3), pa.decimal128(5, 0),
         pa.list_(pa.int64()), pa.large_list(pa.string()), pa.list_(pa.float64(), 2),
         pa.list_(pa.field("x", pa.int8(), nullable=False)),
         pa.struct([("a", pa.int64()), pa.field("b", pa.string(), nullable=False)]),
         pa.map_(pa.string(), pa.int64()), pa.list_(pa.struct([("c", pa.list_(pa.bool_()))])),
         pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string(), ordered=True),
         pa.dictionary(pa.int16(), pa.int64())]
names = [f"c{i}" for i in range(len(types))]
schema = pa.schema(list(zip(names, types)))
table = pa.Table.from_arrays([pa.array([None], t) for t in types], schema=schema)
# What extractions usually write: a pandas frame, index and categories included.
frame = pd.DataFrame({
    "age": [1], "weight": [1.5], "name": ["x"], "sex": pd.Categorical(["m"]), "ok": [True],
    "when": pd.to_datetime(["2020-01-01"]), "zoned": pd.to_datetime(["2020-01-01"], utc=True),
    "nullable": pd.array([None], dtype="Int64"), "text": pd.array(["a"], dtype="string"),
}, index=pd.Index([7], name="key"))
pandas_table = pa.Table.from_pandas(frame)
for field in pandas_table.schema:
    table = table.append_column(field, pandas_table[field.name])

out = io.BytesIO()
pq.write_table(table, out)
read = pq.read_table(io.BytesIO(out.getvalue()))
json.dump({
    "about": f"made by make-parquet-types.py with pyarrow {pa.__version__}, pandas {pd.__version__}",
    "columns": [{"name": f.name, "dtype": str(f.type)} for f in read.schema],
    "parquet_base64": base64.b64encode(out.getvalue()).decode(),
}, open(sys.argv[1], "w"), indent=1)
