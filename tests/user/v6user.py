#!/usr/bin/env python3
"""What a researcher does, with the unmodified vantage6-client 5; a module and a command.

    v6user.py --seed seed.json online [--timeout 60]
    v6user.py --seed seed.json average --image IMAGE [--encrypted-with KEY.pem]
    v6user.py --seed seed.json task --image IMAGE --method M --action A [--arguments JSON]
    v6user.py --seed seed.json runs TASK | kill TASK | delete-dataframe DATAFRAME

`seed.json` is what tests/services/seed.py wrote. Progress goes to standard error, the
answer as JSON to standard output. Exit codes: 0 done, 1 a task did not complete or HQ
refused, 2 wrong arguments, 3 not done in time.

As a module:

    user = User(seed, private_key=None)
    dataframe = user.extract(user.session(), "localhost/v6-average-rust:test")
    task = user.start("central", "central_compute", image, dataframe=dataframe)
    user.wait(task, timeout=60)
    user.result(task)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SERVICES = Path(__file__).resolve().parent.parent / "services"
POLL = 0.2


class Refused(Exception):
    """HQ did not accept a request; the text is HQ's."""


class TimedOut(Exception):
    """What was waited for did not come about in time."""


class TaskFailed(Exception):
    """A task ended otherwise than completed."""

    def __init__(self, task: int, runs: list[Run]):
        lines = [f"task {task} did not complete"]
        for run in runs:
            lines.append(f"  run {run.id} at {run.organization}: {run.status}")
            lines += [f"    | {line}" for line in (run.log or "").splitlines()[-15:]]
        super().__init__("\n".join(lines))
        self.task, self.runs = task, runs


@dataclass(frozen=True)
class Run:
    """A task's run at one organization, as HQ has it."""

    id: int
    task: int
    organization: str
    status: str
    log: str | None
    started_at: str | None
    finished_at: str | None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _client_output_on_stderr() -> Iterator[None]:
    """The client prints and logs to standard output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


class User:
    """A signed-in researcher of the seed's collaboration.

    `private_key` is the PEM file of the researcher's organization, for an encrypted
    collaboration.
    """

    def __init__(self, seed: dict, private_key: str | Path | None = None):
        from vantage6.client import UserClient
        from vantage6.common.encryption import RSACryptor

        self.seed = seed
        self.organizations = {o["id"]: o["name"] for o in seed["organizations"]}
        # The sign-in is the client's own device flow; login.py is its browser.
        os.environ["BROWSER"] = f"{sys.executable} {SERVICES / 'login.py'} approve %s"
        os.environ["V6_USERNAME"] = seed["user"]["username"]
        os.environ["V6_PASSWORD"] = seed["user"]["password"]
        with _client_output_on_stderr():
            self.client = UserClient(
                hq_url=seed["hq_url"], auth_url=seed["auth_url"],
                auth_realm=seed["realm"], log_level="warn",
            )
            self.client.authenticate()
            # The library has one key in a process, the first: it would tell HQ that it is
            # also the next organization's.
            type(RSACryptor)._instances.pop(RSACryptor, None)
            self.client.setup_encryption(str(private_key) if private_key else None)
            self.client.setup_collaboration(seed["collaboration"]["id"])

    def online(self) -> list[str]:
        """The names of the collaboration's nodes that HQ takes for online."""
        found = self._call(self.client.node.list, is_online=True, per_page=100)
        return [node["name"] for node in found["data"]]

    def wait_online(self, count: int | None = None, timeout: float = 60) -> None:
        """Wait until `count` nodes are online, all of them unless told otherwise."""
        count = len(self.seed["nodes"]) if count is None else count
        self._until(
            lambda: len(self.online()) >= count, timeout,
            lambda: f"of {count} nodes only these are online: {self.online()}",
        )

    def session(self) -> int:
        """Make a session of the user's own."""
        name = f"session-{time.time_ns()}"
        return self._call(self.client.session.create, scope="own", name=name)["id"]

    def start_extraction(
        self, session: int, image: str, method: str = "read_csv",
        arguments: dict | None = None, label: str = "default",
    ) -> tuple[int, int]:
        """Ask every node for a dataframe; returns its id and the id of the task."""
        made = self._call(
            self.client.dataframe.create, label=label, image=image, method=method,
            arguments=arguments or {}, session=session,
        )
        return made["id"], made["last_session_task"]["id"]

    def extract(self, session: int, image: str, timeout: float = 120, **options: Any) -> int:
        """Have a dataframe made at every node and wait until it is there."""
        dataframe, task = self.start_extraction(session, image, **options)
        self.wait(task, timeout)
        return dataframe

    def dataframe(self, dataframe: int) -> dict:
        """What HQ knows of a dataframe, its columns among it."""
        return self._call(self.client.dataframe.get, dataframe)

    def start(
        self, method: str, action: str, image: str, session: int | None = None,
        dataframe: int | None = None, arguments: dict | None = None,
        organizations: list[int] | None = None,
    ) -> int:
        """Create a task, a central one at the user's own organization, another one at
        all of them unless `organizations` says otherwise; returns its id."""
        if organizations is None:
            organizations = list(self.organizations)
            if action == "central_compute":
                organizations = [self.seed["user"]["organization_id"]]
        if session is None:
            session = self.dataframe(dataframe)["session"]["id"] if dataframe else self.session()
        return self._call(
            self.client.task.create, organizations=organizations, name=method, image=image,
            description="", method=method, arguments=arguments or {}, session=session,
            databases=[[{"dataframe_id": dataframe}]] if dataframe else None, action=action,
        )["id"]

    def status(self, task: int) -> str:
        """awaiting, completed or failed."""
        return self._call(self.client.task.get, task)["status"]

    def wait(self, task: int, timeout: float = 120) -> None:
        """Wait until a task has completed; TaskFailed if it ends otherwise."""
        state = ["awaiting"]

        def ended() -> bool:
            state[0] = self.status(task)
            return state[0] in ("completed", "failed")

        self._until(ended, timeout, lambda: f"task {task} has not ended: {self.runs(task)}")
        if state[0] != "completed":
            children = self._call(self.client.task.list, parent=task)["data"]
            runs = self.runs(task)
            for child in children:
                runs += self.runs(child["id"])
            raise TaskFailed(task, runs)

    def runs(self, task: int) -> list[Run]:
        """The task's runs, those of its subtasks not among them."""
        # Not `client.run.from_task`: that wants to decrypt every run's arguments, also
        # those that are for other organizations.
        found = self._call(self.client.request, "run", params={"task_id": task, "per_page": 500})
        return [
            Run(
                id=run["id"], task=task, status=run["status"], log=run["log"],
                organization=self.organizations[run["organization"]["id"]],
                started_at=run["started_at"], finished_at=run["finished_at"],
            )
            for run in found["data"]
        ]

    def wait_runs(self, task: int, statuses: set[str], timeout: float = 60) -> list[Run]:
        """Wait until every run of a task has one of the statuses, and return them."""
        runs: list[Run] = []

        def there() -> bool:
            runs[:] = self.runs(task)
            return bool(runs) and all(run.status in statuses for run in runs)

        self._until(there, timeout, lambda: f"not all of {sorted(statuses)}: {runs}")
        return runs

    def result(self, task: int) -> Any:
        """The decrypted result of the only run of a task that has one."""
        found = self._call(self.client.result.from_task, task)["data"]
        results = [run["result"] for run in found if run["result"]]
        if len(results) != 1:
            raise Refused(f"task {task} has {len(results)} results that can be read, not one")
        result = results[0]
        return json.loads(result) if isinstance(result, str | bytes) else result

    def kill(self, task: int) -> None:
        """End a task's runs and those of its subtasks, at every node."""
        self._order("Nodes have been instructed", "kill/task", method="post", json={"id": task})

    def delete_dataframe(self, dataframe: int) -> None:
        """Delete a dataframe at HQ, which tells the nodes to."""
        self._order("Successfully deleted", f"session/dataframe/{dataframe}", method="DELETE")

    def average(self, image: str, timeout: float = 300, label: str = "default") -> dict:
        """The main job: session, extraction everywhere, a central task, its answer."""
        began = time.monotonic()

        def progress(text: str) -> None:
            say(f"[{time.monotonic() - began:6.2f} s] {text}")

        session = self.session()
        progress(f"session {session}: extracting a dataframe at {len(self.organizations)} nodes")
        dataframe = self.extract(session, image, timeout=timeout, label=label)
        progress(f"dataframe {dataframe} is ready; starting the central task")
        task = self.start("central", "central_compute", image, session, dataframe)
        self.wait(task, timeout)
        answer = self.result(task)
        progress(f"task {task} has completed")
        return {
            **answer, "seconds": round(time.monotonic() - began, 3),
            "session": session, "dataframe": dataframe, "task": task,
        }

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call the client, which returns HQ's refusal as if it were an answer."""
        with _client_output_on_stderr():
            answer = function(*args, **options)
        if isinstance(answer, dict) and "msg" in answer and "id" not in answer:
            raise Refused(json.dumps(answer))
        return answer

    def _order(self, done: str, path: str, **options: Any) -> None:
        """A request that HQ answers with a sentence, whether it refuses or not."""
        with _client_output_on_stderr():
            answer = self.client.request(path, **options)
        if not answer.get("msg", "").startswith(done):
            raise Refused(json.dumps(answer))

    @staticmethod
    def _until(done: Any, timeout: float, what: Any) -> None:
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                raise TimedOut(f"in {timeout:g} s {what()}")
            time.sleep(POLL)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=Path, required=True)
    parser.add_argument("--encrypted-with", type=Path, metavar="KEY.pem")
    commands = parser.add_subparsers(dest="command", required=True)
    online = commands.add_parser("online", help="wait until all nodes are online")
    online.add_argument("--count", type=int)
    average = commands.add_parser("average", help="the main job")
    task = commands.add_parser("task", help="one task of any kind, with its runs")
    for one in (average, task):
        one.add_argument("--image", required=True)
        one.add_argument("--label", default="default", help="the database")
    task.add_argument("--method", required=True)
    task.add_argument("--action", required=True, choices=(
        "data_extraction", "federated_compute", "central_compute"))
    task.add_argument("--arguments", type=json.loads, default={})
    task.add_argument("--dataframe", type=int)
    task.add_argument("--organizations", type=int, help="only the first so many")
    task.add_argument("--no-wait", action="store_true")
    for one in (online, average, task):
        one.add_argument("--timeout", type=float, default=120, help="seconds")
    for name, what in (("runs", "task"), ("kill", "task"), ("delete-dataframe", "dataframe")):
        commands.add_parser(name).add_argument("id", type=int, metavar=what.upper())
    return parser.parse_args()


def run(given: argparse.Namespace) -> Any:
    user = User(json.loads(given.seed.read_text()), given.encrypted_with)
    match given.command:
        case "online":
            user.wait_online(given.count, given.timeout)
            return user.online()
        case "average":
            return user.average(given.image, given.timeout, given.label)
        case "task" if given.action == "data_extraction":
            dataframe, task = user.start_extraction(
                user.session(), given.image, given.method, given.arguments, given.label)
        case "task":
            chosen = given.organizations and list(user.organizations)[: given.organizations]
            dataframe, task = given.dataframe, user.start(
                given.method, given.action, given.image, dataframe=given.dataframe,
                arguments=given.arguments, organizations=chosen)
        case "runs":
            return [asdict(run) for run in user.runs(given.id)]
        case "kill":
            return user.kill(given.id)
        case "delete-dataframe":
            return user.delete_dataframe(given.id)
    if not given.no_wait:
        user.wait(task, given.timeout)
    return {"task": task, "dataframe": dataframe, "runs": [asdict(r) for r in user.runs(task)]}


def main() -> int:
    given = arguments()
    try:
        print(json.dumps(run(given), indent=1))
    except (Refused, TaskFailed) as error:
        say(f"v6user.py: {error}")
        return 1
    except TimedOut as error:
        say(f"v6user.py: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
