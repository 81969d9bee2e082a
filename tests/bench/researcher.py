"""A node from HQ's side: a researcher sends tasks, and another node hears what comes of them."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bed import FINAL
from cluster import Place
from v6user import User

# In seconds: without news until a result counts as lost, and for one batch of tasks.
QUIET, DEADLINE = 30.0, 1800.0


@dataclass
class Times:
    """Of one task that was completed, in seconds; None if HQ did not tell."""

    active: float | None
    container: float
    # From the container's exit.
    delivered: float | None
    result: float | None


@dataclass
class Batch:
    """What came of tasks, and what they took of the node."""

    tasks: int = 0
    times: list[Times] = field(default_factory=list)
    # From the first task to the last, and to the last result.
    sending: float = 0.0
    seconds: float = 0.0
    lost: int = 0
    failed: int = 0
    first_failed: int = 0
    memory: float = 0.0
    processor: float = 0.0
    requests: float = 0.0


class Listener:
    """Hears what HQ tells the nodes of a collaboration, as one of them."""

    def __init__(self, seed: dict, number: int) -> None:
        import requests
        import socketio

        node = seed["nodes"][number - 1]

        def login() -> dict[str, str]:
            answer = requests.post(
                f"{seed['auth_url']}/realms/{seed['realm']}/protocol/openid-connect/token",
                data={"grant_type": "client_credentials", "scope": "openid",
                      "client_id": node["client_id"], "client_secret": node["api_key"]}, timeout=30)
            answer.raise_for_status()
            return {"Authorization": f"Bearer {answer.json()['access_token']}"}

        # What was told of each task, and when.
        self.events: dict[int, list[tuple[str, float]]] = {}
        self.told = 0
        self.changed = threading.Condition()
        self.socket = socketio.Client()
        self.socket.on("algorithm_status_change", self.hear, namespace="/tasks")
        self.socket.connect(seed["hq_url"], namespaces=["/tasks"], wait_timeout=20, headers=login)

    def hear(self, event: dict) -> None:
        with self.changed:
            self.events.setdefault(event["task_id"], []).append((event["status"], time.time()))
            self.told += 1
            self.changed.notify_all()

    def when(self, task: int, status: str) -> float | None:
        """When HQ has told it for the first time."""
        return next((at for told, at in self.events.get(task, []) if told == status), None)

    def close(self) -> None:
        self.socket.disconnect()


def started() -> float:
    """When this machine started, by the clock that tells the time of day."""
    return time.time() - float(Path("/proc/uptime").read_text().split()[0])


class Researcher:
    """Sends tasks with one run each."""

    def __init__(self, seed: dict, listener: Listener, image: str, work: float) -> None:
        self.seed, self.listener, self.image, self.work = seed, listener, image, work
        self.user = User(seed)
        self.session = self.user.session()
        self.sent: dict[int, float] = {}

    def send(self, number: int) -> int:
        """A task for the organization of this number; its id."""
        now = time.time()
        task = self.user.start(
            "run", "federated_compute", self.image, session=self.session,
            arguments={"seconds": self.work},
            organizations=[self.seed["organizations"][number - 1]["id"]])
        self.sent[task] = now
        return task

    def settle(self, place: Place, tasks: list[int]) -> None:
        """Wait until all are completed, or nothing can come of the others any more."""
        listener = self.listener
        end, since, told = time.monotonic() + DEADLINE, time.monotonic(), -1
        while not all(listener.when(task, "completed") for task in tasks):
            with listener.changed:
                listener.changed.wait(1)
            now = time.monotonic()
            # The cluster is not asked while there is news, so that the asking costs nothing.
            if listener.told != told or (now > since + QUIET / 3 and place.runs()):
                told, since = listener.told, now
            elif now > since + QUIET:
                return
            if now > end:
                raise AssertionError(f"not over within {DEADLINE:g} s: runs in {place.name}")

    def judge(self, batch: Batch, tasks: list[int]) -> None:
        """Fill in what came of tasks that have settled."""
        boot = started()
        batch.tasks = len(tasks)
        for task in tasks:
            (run,) = self.user.runs(task)
            told = [status for status, _ in self.listener.events.get(task, [])]
            before = told[: told.index("completed")] if "completed" in told else told
            batch.first_failed += any(status in FINAL for status in before)
            if run.status == "completed":
                batch.times.append(self.times(task, boot))
            elif run.status in FINAL:
                batch.failed += 1
            else:
                batch.lost += 1
        batch.sending = self.sent[tasks[-1]] - self.sent[tasks[0]]
        results = [self.listener.when(task, "completed") for task in tasks]
        batch.seconds = max(filter(None, results), default=0.0) - self.sent[tasks[0]]

    def times(self, task: int, boot: float) -> Times:
        answer: dict[str, Any] = self.user.result(task)
        sent = self.sent[task]
        active, completed = (self.listener.when(task, what) for what in ("active", "completed"))
        return Times(
            active=active and active - sent, container=boot + answer["start"] - sent,
            delivered=completed and completed - boot - answer["end"],
            result=completed and completed - sent)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # of a library, at the end of everything
            self.listener.close()
