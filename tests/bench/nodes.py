#!/usr/bin/env python3
"""Our node beside the real Python node of vantage6, on the same HQ and the same Kubernetes cluster.

    tests/bench/nodes.py [--json] [--quick] [--tasks 20] [--at-once 20 60]

Measures from HQ's side, one after the other: the unmodified vantage6-node 5.0.3 of PyPI (the
reference), then `v6-node --runtime kubernetes` (ours). Both are processes of this machine, with a
namespace and an account of their own, and run the same image with 1 s of work (its algorithm waits
that long and tells when it began and ended).

First tasks one at a time, then some at once. Times begin when the researcher sends the task, and
end when HQ tells another node of it. A result is lost if HQ never gets it: the run is not over, of
jobs and pods of runs nothing is left in the node's namespace, and HQ has told nothing new for 30 s.
Both nodes may have all of the runs in progress at once: ours is told to, the other one knows no
limit. Requests to the API server are those of the node's own account, without logs and forwarded
connections, which the server does not count.

Needs root, the cluster of `tests/services/kubernetes.sh up WORKDIR` and the registries of
`registry.sh up WORKDIR` with what these print in the environment, and tests/services/python.sh's
Python of HQ and of the Python node (V6_TESTS_INSTALL=1: they are installed). HQ is started here, or
is that of V6_TESTS_WORK. V6_NODE is the v6-node to measure (default: the one that cargo builds for
release). What is made is removed, also after Ctrl-C, but for images in the registry and in the
cluster.

--json prints a list of {name, unit, ours, reference, ratio}. Exit codes: 0 measured, 1 not
(standard error says why), 2 wrong arguments, 130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "end-to-end"))

import run as end_to_end  # noqa: E402
from bed import SERVICES, Services, until  # noqa: E402
from cluster import push  # noqa: E402
from contenders import Contender, Ours, Python  # noqa: E402
from researcher import Batch, Listener, Researcher  # noqa: E402
from rows import Row, machine, megabytes, say, show  # noqa: E402

NEEDED = {"KUBECONFIG": "kubernetes.sh", "V6_KUBERNETES_WORK": "kubernetes.sh",
          "V6_REGISTRY_OPEN": "registry.sh"}
PLACES = ("python", "rust", "listener")
# Seconds of work in each task.
WORK = 1
# For how long an idle node is looked at, and how often a node's memory is, in seconds.
IDLE, QUICK_IDLE, SAMPLE = 60.0, 15.0, 0.25
DELIVERED = "container's exit to result at HQ"
SPANS = {"sent to active": "active", "sent to the container's first command": "container",
         DELIVERED: "delivered", "sent to result at HQ": "result"}
# How many are in a second.
UNITS = {"s": 1, "ms": 1000}


@dataclass(frozen=True)
class Measured:
    """What one node has shown."""

    idle: Batch
    # For how long it was looked at while it was idle.
    minutes: float
    one_by_one: Batch
    at_once: list[Batch]


def processor(process: int) -> float:
    """What a process has had of processors, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def watched(node: Contender) -> Iterator[Batch]:
    """Note what a node takes meanwhile."""
    batch, over = Batch(), threading.Event()
    used, asked = processor(node.pid), node.place.requests()

    def look() -> None:
        while not over.wait(SAMPLE):
            batch.memory = max(batch.memory, megabytes(node.pid, "VmRSS"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield batch
    finally:
        over.set()
        thread.join()
    batch.processor = processor(node.pid) - used
    batch.requests = node.place.requests() - asked


def load(node: Contender, number: int, user: Researcher, tasks: int, at_once: bool) -> Batch:
    """Send tasks and wait until all is over, at the cluster, too."""
    sent: list[int] = []
    with watched(node) as batch:
        for _ in range(tasks):
            sent.append(user.send(number))
            if not at_once:
                user.settle(node.place, sent[-1:])
        user.settle(node.place, sent)
        until(lambda: not node.place.runs(), 300, "nothing is left of the runs in the cluster")
    user.judge(batch, sent)
    say(f"{node.label}: {tasks} tasks {'at once' if at_once else 'one at a time'} in "
        f"{batch.seconds:.1f} s, {batch.lost} lost, {batch.failed} failed, "
        f"{batch.first_failed} first told as failed")
    return batch


def measure(node: Contender, number: int, user: Researcher, given: argparse.Namespace) -> Measured:
    name = user.seed["nodes"][number - 1]["name"]

    def online() -> bool:
        if not node.alive():
            raise AssertionError(f"{node.label} has ended: {node.log.read_text()[-2000:]}")
        return name in user.user.online()

    until(online, 300, f"{node.label} is online")
    node.place.standing = node.place.objects()
    say(f"{node.label} is online")
    # The image is fetched, and what is done once for each process.
    first = load(node, number, user, 1, at_once=True)
    if not first.times:
        raise AssertionError(f"{node.label} has not completed its first task: see {node.log}")
    seconds = QUICK_IDLE if given.quick else IDLE
    with watched(node) as idle:
        time.sleep(seconds)
    say(f"{node.label} was idle for {seconds:g} s")
    one_by_one = load(node, number, user, given.tasks, at_once=False)
    at_once = [load(node, number, user, runs, at_once=True) for runs in given.at_once]
    return Measured(idle, seconds / 60, one_by_one, at_once)


def values(batch: Batch, field: str, scale: float) -> list[float]:
    return [value * scale for one in batch.times if (value := getattr(one, field)) is not None]


def rows(ours: Measured, reference: Measured) -> list[Row]:
    found: list[Row] = []

    def add(name: str, unit: str, of: Callable[[Measured], float]) -> None:
        found.append(Row(name, unit, of(ours), reference=of(reference)))

    def span(name: str, which: Callable[[Measured], Batch], field: str, unit: str,
             word: Callable[[list[float]], float] = statistics.median) -> None:
        """Of the tasks that were completed."""
        mine, theirs = (values(which(of), field, UNITS[unit]) for of in (ours, reference))
        if not mine:
            raise AssertionError(f"our node has completed nothing: {name}")
        found.append(Row(name, unit, word(mine), reference=word(theirs) if theirs else None))

    def outcome(before: str, which: Callable[[Measured], Batch]) -> None:
        add(f"{before}: results lost", "runs", lambda of: which(of).lost)
        add(f"{before}: first told as failed", "runs", lambda of: which(of).first_failed)
        if which(ours).failed or which(reference).failed:
            add(f"{before}: failed", "runs", lambda of: which(of).failed)

    def cost(before: str, which: Callable[[Measured], Batch]) -> None:
        add(f"{before}: resident memory, at most", "MB", lambda of: which(of).memory)
        add(f"{before}: processor time for each run", "ms",
            lambda of: which(of).processor / which(of).tasks * 1000)
        add(f"{before}: to the API server for each run", "requests",
            lambda of: which(of).requests / which(of).tasks)

    add("idle: resident memory, at most", "MB", lambda of: of.idle.memory)
    add("idle: to the API server each minute", "requests",
        lambda of: of.idle.requests / of.minutes)

    def one_by_one(of: Measured) -> Batch:
        return of.one_by_one

    for name, field in SPANS.items():
        span(f"one at a time: {name}, median", one_by_one, field, "ms")
    span(f"one at a time: {DELIVERED}, max", one_by_one, "delivered", "ms", max)
    outcome("one at a time", one_by_one)
    cost("one at a time", one_by_one)
    for number, batch in enumerate(ours.at_once):
        def at_once(of: Measured, number: int = number) -> Batch:
            return of.at_once[number]

        before = f"{batch.tasks} at once"
        add(f"{before}: first task sent to last sent", "s", lambda of: at_once(of).sending)
        add(f"{before}: first task sent to last result", "s", lambda of: at_once(of).seconds)
        outcome(before, at_once)
        for name, field in SPANS.items():
            span(f"{before}: {name}, median", at_once, field, "s")
        cost(before, at_once)
    return found


def image(folder: Path) -> str:
    """The algorithm, in the cluster's registry under a name of its content."""
    subprocess.run([TESTS / "algorithms" / "build", "--to", folder, "timed"], check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    archive = folder / "timed.tar"
    return push(archive, f"v6-tests/timed:{hashlib.sha256(archive.read_bytes()).hexdigest()[:12]}")


def seed(services: Services, folder: Path, algorithm: str) -> dict:
    """Three organizations: one for each node, and one whose node is who listens."""
    path, name = folder / "seed.json", f"bench-{os.getpid()}"

    def script(what: str, *words: str | Path) -> None:
        subprocess.run([sys.executable, SERVICES / what, *words], check=True,
                       env=services.environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)

    script("seed.py", "--hq", services.environment["V6_HQ_URL"], "--auth",
           services.environment["V6_AUTH_URL"], "--out", path, "--collaboration", name,
           "--orgs", ",".join(f"{name}-{place}" for place in PLACES),
           "--user", f"{name}-researcher")
    script("nodes.py", "--seed", path, "--out", folder, "--owner", name, "--allow",
           f"^{re.escape(algorithm)}$", "--database", *[TESTS / "data" / "hard.csv"] * len(PLACES))
    return json.loads(path.read_text())


def compare(given: argparse.Namespace) -> list[Row]:
    with contextlib.ExitStack() as last:
        services = Services("hq")
        # Who interrupts it has no use for logs.
        last.push(lambda kind, *_: services.close(
            keep_logs=kind is not None and issubclass(kind, Exception)))
        folder = Path(tempfile.mkdtemp(prefix="nodes.", dir=services.work))
        folder.chmod(0o755)
        last.callback(shutil.rmtree, folder)
        algorithm = image(folder)
        entities = seed(services, folder, algorithm)
        listener = Listener(entities, len(PLACES))
        user = Researcher(entities, listener, algorithm, WORK)
        last.callback(user.close)
        say("HQ is there")
        measured = []
        runs = max(given.tasks, *given.at_once)
        for number, make in enumerate((Python, lambda *words: Ours(*words, runs)), start=1):
            node = make(folder, number, services.log / f"nodes-{PLACES[number - 1]}.log")
            try:
                node.up()
                measured.append(measure(node, number, user, given))
            finally:
                node.down()
        reference, ours = measured
        return rows(ours, reference)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--quick", action="store_true", help="5 tasks, then 5 at once")
    parser.add_argument("--tasks", type=int, default=20, help="sent one at a time")
    parser.add_argument("--at-once", type=int, nargs="+", default=[20, 60], metavar="N",
                        help="sent at once, one number after the other")
    given = parser.parse_args()
    if given.quick:
        given.tasks, given.at_once = 5, [5]
    if min(given.tasks, *given.at_once) < 1:
        parser.error("numbers of tasks are 1 or more")
    if os.geteuid():
        say("nodes.py: only root can give the Python node the folders that it wants")
        return 1
    for variable, service in NEEDED.items():
        if variable not in os.environ:
            say(f"nodes.py: {variable} is missing: start tests/services/{service}")
            return 1
    end_to_end.use_python_of_hq()
    end_to_end.build_node()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where = machine()
    try:
        found = compare(given)
    except AssertionError as error:
        say(f"nodes.py: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    show(found, where, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
