#!/usr/bin/env python3
"""What pandas says about a whole table, and whether an answer agrees with it.

    expected.py WHOLE.csv                  prints {"columns": {NAME: {mean, std, count}}}
    expected.py WHOLE.csv ANSWER.json      compares, names each difference, exits 1 if any

The answer may be - for standard input. Numbers agree within 1e-9 of their size. (A mean
that is nearly zero beside its values has fewer good digits, in pandas as elsewhere:
1e-12 of the largest value is allowed, too.)
"""

from __future__ import annotations

import json
import math
import sys

import pandas as pd

RELATIVE = 1e-9
OF_LARGEST = 1e-12


def numeric(table: pd.DataFrame) -> pd.DataFrame:
    """The columns with numbers in them, or with nothing at all; no truth values."""
    return table[[
        name for name in table.columns
        if table[name].isna().all()
        or (pd.api.types.is_numeric_dtype(table[name])
            and not pd.api.types.is_bool_dtype(table[name]))
    ]]


def describe(table: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    columns = {}
    for name, values in numeric(table).items():
        values = values.astype("float64")
        mean, std = float(values.mean()), float(values.std(ddof=1))
        columns[str(name)] = {
            "mean": mean if math.isfinite(mean) else None,
            "std": std if math.isfinite(std) else None,
            "count": int(values.count()),
        }
    return columns


def differences(table: pd.DataFrame, answer: dict) -> list[str]:
    expected, found = describe(table), answer.get("columns", {})
    wrong = [f"column {n} is missing" for n in expected if n not in found]
    wrong += [f"column {n} should not be there" for n in found if n not in expected]
    for name in expected.keys() & found.keys():
        largest = float(table[name].astype("float64").abs().max() or 0.0)
        for key, want in expected[name].items():
            got = found[name].get(key)
            if key == "count" or want is None or not isinstance(got, int | float):
                same = got == want
            else:
                same = math.isclose(got, want, rel_tol=RELATIVE, abs_tol=OF_LARGEST * largest)
            if not same:
                wrong.append(f"{key} of {name} is {got}, pandas says {want}")
    return wrong


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    table = pd.read_csv(sys.argv[1])
    if len(sys.argv) == 2:
        print(json.dumps({"columns": describe(table)}, indent=1))
        return 0
    with sys.stdin if sys.argv[2] == "-" else open(sys.argv[2], encoding="utf-8") as file:
        wrong = differences(table, json.load(file))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
