#!/usr/bin/env python3
"""What the node itself costs: its own time beside HQ's and the engine's, and its memory.

    tests/bench/node.py [--json] [--tasks 30] [--runs 100]

Starts HQ, Docker and a collaboration's nodes as the end-to-end tests do, and takes the
Python of `tests/services/python.sh hq` by itself. Environment: V6_NODE, the v6-node to
measure (default: the one that cargo builds for release); V6_TESTS_WORK, a work folder in
which HQ and Docker run already.

Tasks are sent one at a time. What happened when is read from the node's own log, and when
an algorithm ended is the engine's word. Time in which the node waited for an answer of HQ
is taken out of "own" times and left in "with HQ" ones. Memory is RssAnon: what the process
needs for itself.

The engine's part after a run's end is compared with the bare calls that it cannot do
without, made here in turns with the runs: wait, inspect, one file, the log.

--json prints a list of {name, unit, ours, reference, ratio}; reference and ratio are null
where there is nothing to compare with. The table has the project's aims, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "end-to-end"))

import bed  # noqa: E402
import engine  # noqa: E402
import run as end_to_end  # noqa: E402
from bed import UNRULY, Collaboration, until  # noqa: E402
from rows import Row, machine, megabytes, say, show  # noqa: E402

# For how long memory is looked at, in seconds.
LOOKED_AT = 5.0
Interval = tuple[float, float]


class Log:
    """The events of a node's log, as JSON and with `at` in milliseconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size

    def events(self) -> list[dict]:
        """All since the log was opened here, in the order in which they were written."""
        found = []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                event = json.loads(line)
                event["at"] = datetime.fromisoformat(event["timestamp"]).timestamp() * 1000
                found.append(event)
        return found


def first(events: list[dict], message: str, **fields: Any) -> dict:
    for event in events:
        if event["message"] == message and all(event.get(k) == v for k, v in fields.items()):
            return event
    raise AssertionError(f"the node's log has no {message!r} with {fields}")


def waited(events: list[dict], span: Interval) -> float:
    """For how much of a span the node had a call to HQ open, in milliseconds."""
    begin, end = span
    calls = sorted((max(e["at"] - e["milliseconds"], begin), min(e["at"], end))
                   for e in events if e["message"] == "HQ answered")
    total, reached = 0.0, begin
    for since, until in calls:
        total += max(0.0, until - max(since, reached))
        reached = max(reached, until)
    return total


@dataclass(frozen=True)
class Times:
    """One run's, in milliseconds."""

    start: float
    start_own: float
    end: float
    end_own: float
    # From the container's exit until the node has heard of it and has read output and log.
    end_engine: float

    @property
    def end_node(self) -> float:
        return self.end_own - self.end_engine

    @classmethod
    def of(cls, events: list[dict], task: int, run: int) -> Times:
        heard = first(events, "HQ announced a task", task=task)["at"]
        asked = first(events, "asking the engine for the image", run=run)["at"]
        told = first(events, "since the algorithm's end, by the engine's clock", run=run)
        taken = first(events, "HQ has taken the result", run=run)["at"]
        exited = told["at"] - told["milliseconds"]
        return cls(
            start=asked - heard, start_own=asked - heard - waited(events, (heard, asked)),
            end=taken - exited, end_own=taken - exited - waited(events, (exited, taken)),
            end_engine=told["milliseconds"] - waited(events, (exited, told["at"])))


def most(process: int) -> float:
    """The most that it has within a while, in MB."""
    end, found = time.monotonic() + LOOKED_AT, 0.0
    while time.monotonic() < end:
        found = max(found, megabytes(process, "RssAnon"))
        time.sleep(0.1)
    return found


def prepare(at: Collaboration, runs: int) -> Log:
    """Start the first node anew, with a log to read and with room for all runs."""
    node = at.node
    node.terminate()
    config = json.loads(node.config.read_text())
    config["runtime"]["max_concurrent_runs"] = runs
    config["runtime"]["run"] |= {"memory": "64MiB", "scratch": "1MiB", "pids": 16}
    node.config.write_text(json.dumps(config))
    node.log.write_bytes(b"")
    log = Log(node.log)
    node.start("--log-format", "json", "--log-filter", "warn,v6_node=debug")
    node.says("HQ knows this node")
    at.user.wait_online()
    return log


def bare_calls(number: int) -> float:
    """From a container's exit until its result and log are read, in milliseconds."""
    command = ["python3", "-c", "open('/result', 'w').write('good'); print('begun')"]
    name = f"v6-bench-{os.getpid()}-{number}"
    container = engine.Container(name, Image=UNRULY, Cmd=command,
                                 HostConfig={"NetworkMode": "none"})
    try:
        container.start()
        container.wait()
        # Of nanoseconds, Python reads the microseconds.
        exited = datetime.fromisoformat(container.state()["FinishedAt"])
        engine.call("GET", f"{container.path}/archive", path="/result")
        container.log()
        return (datetime.now(UTC) - exited).total_seconds() * 1000
    finally:
        container.remove()


def one_at_a_time(at: Collaboration, log: Log, tasks: int) -> tuple[list[Times], list[float]]:
    sent, bare = [], []
    for number in range(tasks):
        task = at.start("good")
        run = at.ended(task)
        if run.status != "completed":
            raise AssertionError(f"run {run.id}: {run.status}: {run.log}")
        sent.append((task, run.id))
        bare.append(bare_calls(number))
    until(lambda: at.node.runs() == [], 30, "nothing is left at the engine")
    events = log.events()
    return [Times.of(events, task, run) for task, run in sent], bare


def many_at_once(at: Collaboration, runs: int) -> float:
    tasks = [at.start("slow", seconds=3600) for _ in range(runs)]
    running = [0]

    def all_run() -> bool:
        now = sum(row["state"] == "running" for row in at.node.runs())
        if now != running[0]:
            running[0] = now
            say(f"{now} of {runs} run")
        return now == runs

    until(all_run, 600, f"{runs} runs are in progress")
    for task in tasks:
        at.active(task)
    memory = most(at.node.process.pid)
    for task in tasks:
        at.user.kill(task)
    until(lambda: at.node.runs() == [], 600, "the killed runs are gone from the engine")
    return memory


def times_rows(times: list[Times], bare: list[float]) -> list[Row]:
    measures = (
        ("HQ's event to the first engine call, own time", "start_own", 20.0, None),
        ("HQ's event to the first engine call, with HQ", "start", None, None),
        ("container's exit to result accepted, without HQ", "end_own", 50.0, None),
        ("of this, until output and log are read from the engine", "end_engine", None, bare),
        ("of this, the node's own after that", "end_node", None, None),
        ("container's exit to result accepted, with HQ", "end", None, None),
    )
    rows = []
    for name, field, aim, reference in measures:
        values = [getattr(one, field) for one in times]
        for word, of in (("median", statistics.median), ("max", max)):
            rows.append(Row(f"{name}, {word}", "ms", of(values),
                            aim if of is statistics.median else None,
                            reference and of(reference)))
    return rows


def measure(tasks: int, runs: int) -> list[Row]:
    at = bed.bed().collaboration("bench")
    at.user  # noqa: B018 - waits for the nodes
    log = prepare(at, runs)
    say("the node is online and idle")
    rows = [Row("RssAnon, idle", "MB", most(at.node.process.pid), 20.0)]
    rows += times_rows(*one_at_a_time(at, log, tasks))
    rows.append(Row(f"RssAnon, idle after {tasks} runs", "MB", most(at.node.process.pid), 20.0))
    rows.append(Row(f"RssAnon, {runs} runs in progress", "MB", many_at_once(at, runs)))
    rows.append(Row(f"RssAnon, idle after {runs} runs at once", "MB", most(at.node.process.pid)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--tasks", type=int, default=30, help="sent one at a time")
    parser.add_argument("--runs", type=int, default=100, help="in progress at once")
    given = parser.parse_args()
    end_to_end.use_python_of_hq()
    end_to_end.build_node()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where = machine()
    done = False
    try:
        rows = measure(given.tasks, given.runs)
        done = True
    finally:
        bed.close(keep_logs=not done)
    show(rows, where, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
