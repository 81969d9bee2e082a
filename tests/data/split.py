#!/usr/bin/env python3
"""Split a table by row into the CSV files of several data holders.

    split.py --out FOLDER [--parts 3] [--data FILE.csv]

Without --data it takes a real, public table: the lung cancer trial of the North Central
Cancer Treatment Group (Loprinzi et al. 1994), as the PyPI package `lifelines` ships it,
with its column names and its missing values. Writes FOLDER/whole.csv and
FOLDER/part-1.csv and so on; the text of each field stays as it is. The rows are cut
into blocks of unequal size, as data holders differ.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from pathlib import Path


def lung() -> Path:
    """The file in the package, which need not be importable for this."""
    spec = importlib.util.find_spec("lifelines")
    if spec is None or spec.origin is None:
        sys.exit("split.py: the Python package lifelines is not there; give --data")
    return Path(spec.origin).parent / "datasets" / "lung.csv"


def boundaries(rows: int, parts: int) -> list[int]:
    """Where each part begins, and the end: sizes grow as 1 : 2 : 3 ..."""
    total = parts * (parts + 1) // 2
    return [rows * (i * (i + 1) // 2) // total for i in range(parts + 1)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--parts", type=int, default=3)
    arguments.add_argument("--data", type=Path)
    given = arguments.parse_args()
    source = given.data or lung()
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"split.py: cannot read {source} as a CSV file in UTF-8: {error}")
    except ValueError:
        sys.exit(f"split.py: {source} is empty; the first line must name the columns")
    rows = [row for row in rows if row]  # pandas leaves out blank lines, too
    ragged = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if ragged is not None:
        sys.exit(
            f"split.py: row {ragged + 1} of {source} has {len(rows[ragged])} fields, "
            f"the header {len(header)}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    starts = boundaries(len(rows), given.parts)
    files = {"whole": rows}
    for i in range(given.parts):
        files[f"part-{i + 1}"] = rows[starts[i] : starts[i + 1]]
    for name, selected in files.items():
        with (given.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *selected])
    print(", ".join(f"{name}: {len(r)} rows" for name, r in files.items()))


if __name__ == "__main__":
    main()
