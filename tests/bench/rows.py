"""What the measures that are written in Python print, and how they look at processes."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    ours: float
    aim: float | None = None
    reference: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None

    def json(self) -> dict:
        def rounded(number: float | None) -> float | None:
            return None if number is None else round(number, 3)

        return {"name": self.name, "unit": self.unit, "ours": rounded(self.ours),
                "reference": rounded(self.reference), "ratio": rounded(self.ratio)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def megabytes(process: int, field: str) -> float:
    """What the kernel says of a process's memory: `VmRSS`, `RssAnon`."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"process {process} has no {field}")


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in
                  Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    return (f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {model}, Linux "
            f"{platform.release()}, load {load:.1f} at the start")


def table(rows: list[Row], where: str) -> str:
    """The rows under the command that gave them; with aims only if there are any."""
    program = Path(sys.argv[0]).name
    columns = [("measure", "---"), ("unit", "---"), ("ours", "--:"), ("aim", "--:"),
               ("reference", "--:"), ("ratio", "--:")]
    cells = [[heading for heading, _ in columns], [line for _, line in columns]]
    for row in rows:
        aim, reference, ratio = (
            "" if number is None else f"{number:{form}}"
            for number, form in ((row.aim, "g"), (row.reference, ".1f"), (row.ratio, ".2f")))
        cells.append([row.name, row.unit, f"{row.ours:.1f}", aim, reference, ratio])
    if all(row.aim is None for row in rows):
        for line in cells:
            del line[3]
    return "\n".join([f"`{shlex.join([f'tests/bench/{program}', *sys.argv[1:]])}`: {where}.", "",
                      *(f"| {' | '.join(line)} |" for line in cells)])


def show(rows: list[Row], where: str, as_json: bool) -> None:
    print(json.dumps([row.json() for row in rows], indent=1) if as_json else table(rows, where))
