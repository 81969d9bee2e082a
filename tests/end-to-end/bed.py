"""What end-to-end tests lie on: HQ, Docker, organizations with a node and data each.

HQ and Docker are those of the work folder that `V6_TESTS_WORK` names (started there by
tests/run), or else are started in one of our own. Nodes are processes of the program that
`V6_NODE` names. Everything is made of the pieces that tests/demo is made of.
"""

from __future__ import annotations

import functools
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
SERVICES = TESTS / "services"
sys.path[:0] = [str(TESTS / "user"), str(TESTS / "data"), str(TESTS / "report")]

import v6user  # noqa: E402

PYTHON = "localhost/v6-average-python:test"
RUST = "localhost/v6-average-rust:test"
UNRULY = "localhost/v6-unruly:test"
PROBE = "localhost/v6-probe:test"
# What tests put into the registries of the same machine.
PUSHED = r"127\.0\.0\.1:\d+/v6-tests/[a-z-]+:1"
NODES = 3
MIB = 1 << 20
# Smaller than the defaults, so that a test of a limit need not fill the disk.
MAX_OUTPUT = 64 * MIB
LOG_LIMIT = 4 * MIB
GRACE = 2
FINAL = {
    "completed", "failed", "crashed", "killed by user", "not allowed", "unknown error",
    "start failed", "non-existing Docker image", "unexpected output", "dataframe not found",
    "depended on failed task",
}


def until(done: Callable[[], Any], timeout: float, what: str) -> Any:
    """Wait for a true answer and return it."""
    end = time.monotonic() + timeout
    while not (answer := done()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)
    return answer


def shell_variables(text: str) -> dict[str, str]:
    """The variables of lines like `export A=1 B='2 3'`."""
    words = [word for line in text.splitlines() for word in shlex.split(line)[1:]]
    return dict(word.split("=", 1) for word in words)


class Services:
    """HQ and Docker in a work folder, or what is named of them."""

    def __init__(self, *names: str) -> None:
        self.names = names or ("docker", "hq")
        given = os.environ.get("V6_TESTS_WORK")
        self.ours = given is None
        self.work = Path(given or tempfile.mkdtemp(prefix="v6-e2e."))
        self.environment = dict(os.environ)
        self.log = self.work / "log"
        if self.ours:
            self.work.chmod(0o755)
            try:
                for name in self.names:
                    self.run(name, "up")
            except BaseException:  # a signal, too: nobody else knows of these services yet
                self.close(keep_logs=True)
                raise

    def run(self, name: str, verb: str, *options: str) -> None:
        """Call a service's script; what `up` exports holds from then on."""
        done = subprocess.run(
            [SERVICES / f"{name}.sh", verb, self.work, *options], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise AssertionError(f"{name}.sh {verb}: {done.stderr}")
        self.environment |= shell_variables(done.stdout)
        os.environ.update(shell_variables(done.stdout))

    def owns(self, program: str) -> bool:
        """Whether a program of the services was started in this work folder."""
        return (self.work / "run" / f"{program}.pid").exists()

    def build_images(self, *what: str | Path, **environment: str) -> None:
        subprocess.run([TESTS / "algorithms" / "build", *what], check=True,
                       env=self.environment | environment, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)

    def close(self, keep_logs: bool) -> None:
        if not self.ours:
            return
        for name in reversed(self.names):
            self.run(name, "down")
        for path in self.work.iterdir():
            if not (keep_logs and path == self.log):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if keep_logs:
            print(f"logs are in {self.log}", file=sys.stderr)
        else:
            self.work.rmdir()


@dataclass(frozen=True)
class Engine:
    """What runs a node's algorithms."""

    kind: str = "docker"
    # Of the configuration's `runtime:` section, beside what all nodes have.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Whom the node has to be, if not who these tests are.
    user: str | None = None
    # What makes the node, if it is no process of this machine.
    node: Callable[..., Node] | None = None


class Node:
    """One `v6-node` of one organization."""

    def __init__(self, config: Path, secrets: Path, log: Path,
                 engine: Engine = Engine()) -> None:
        self.config, self.log, self.engine = config, log, engine
        self.environment = dict(os.environ) | shell_variables(secrets.read_text())
        self.process: subprocess.Popen | None = None
        self.program, self.identity = os.environ["V6_NODE"], {}
        # What its command line begins with.
        self.prefix: list[str] = []
        if engine.user:
            self.become(pwd.getpwnam(engine.user))

    def become(self, user: pwd.struct_passwd) -> None:
        """From now on the node is another user's, in a folder of his own."""
        folder = self.config.with_suffix("")
        for made in (folder, folder / "home"):
            made.mkdir(exist_ok=True)
            os.chown(made, user.pw_uid, user.pw_gid)
        self.program = shutil.copy2(self.program, folder / "v6-node")
        self.environment |= {"HOME": str(folder / "home"), "USER": user.pw_name}
        self.identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [],
                         "cwd": folder}

    def command(self, verb: str, *options: str) -> list[str]:
        return [*self.prefix, self.program, verb, "--config", str(self.config), *options]

    def start(self, *options: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("start", "--runtime", self.engine.kind, *options),
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                **self.identity)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> tuple[float, int]:
        """SIGTERM; how long it took to leave, in seconds, and its exit code."""
        began = time.monotonic()
        self.process.terminate()
        code = self.process.wait(timeout=20)
        return time.monotonic() - began, code

    def stop(self) -> None:
        if self.alive():
            self.kill()

    def run(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Another command of v6-node with this node's configuration, to its end."""
        return subprocess.run(self.command(verb, *options), env=self.environment, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                              **self.identity)

    def runs(self) -> list[dict]:
        """What the node has at the engine."""
        done = self.run("runs", "--json", "--runtime", self.engine.kind)
        if done.returncode:
            raise AssertionError(f"v6-node runs: {done.stderr}")
        return json.loads(done.stdout)

    def says(self, text: str, timeout: float = 30) -> None:
        """Wait until the log of the current process and those before has a text."""
        until(lambda: text in self.log.read_text(errors="replace"), timeout,
              f"{text!r} in {self.log}")

    def peak_memory(self) -> int:
        """The most bytes that the process has had in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


class Collaboration:
    """Three organizations with a running node each, and a researcher of the first."""

    def __init__(self, services: Services, name: str, encrypted: bool,
                 engines: Sequence[Engine]) -> None:
        self.services, self.encrypted = services, encrypted
        # The federated averages that were asked for, by image.
        self.answers: dict[str, dict] = {}
        self.folder = services.work / "e2e" / name
        self.folder.mkdir(parents=True)
        environment = services.environment
        python = sys.executable

        def script(*command: str | Path) -> None:
            subprocess.run([python, *map(str, command)], check=True, env=environment,
                           stdin=subprocess.DEVNULL, stdout=sys.stderr)

        script(TESTS / "data" / "split.py", "--out", self.folder / "data")
        seed = self.folder / "seed.json"
        script(SERVICES / "seed.py", "--hq", environment["V6_HQ_URL"], "--auth",
               environment["V6_AUTH_URL"], "--out", seed, "--collaboration", name,
               "--orgs", ",".join(f"{name}-{place}" for place in ("north", "east", "south")),
               "--user", f"{name}-researcher", *(["--encrypted"] if encrypted else []))
        self.seed = json.loads(seed.read_text())
        images = "|".join(image.replace(".", r"\.") for image in (PYTHON, RUST, UNRULY))
        script(SERVICES / "nodes.py", "--seed", seed, "--out", self.folder, "--docker-host",
               environment["DOCKER_HOST"], "--owner", f"e2e-{os.getpid()}-{name}",
               "--allow", f"^({images}|{PUSHED})$", "--database",
               *(self.folder / "data" / f"part-{n}.csv" for n in range(1, NODES + 1)))
        self.nodes = [self._node(n, engine) for n, engine in enumerate(engines, start=1)]
        for node in self.nodes:
            self.configure(node, max_output=f"{MAX_OUTPUT // MIB}MiB",
                           log_limit=f"{LOG_LIMIT // MIB}MiB", grace=f"{GRACE}s")
            node.start()

    def _node(self, number: int, engine: Engine) -> Node:
        log = self.services.log / f"e2e-{self.folder.name}-node-{number}.log"
        make = engine.node or Node
        node = make(self.folder / f"node-{number}.yaml", self.folder / f"node-{number}.env", log,
                    engine)
        config = json.loads(node.config.read_text())
        config["runtime"] |= engine.settings
        node.config.write_text(json.dumps(config))
        return node

    @staticmethod
    def configure(node: Node, **limits: str) -> None:
        config = json.loads(node.config.read_text())
        config["runtime"].setdefault("run", {}).update(limits)
        node.config.write_text(json.dumps(config))

    @functools.cached_property
    def user(self) -> v6user.User:
        key = self.folder / "node-1.pem" if self.encrypted else None
        # Joined first: the nodes publish the keys that the researcher encrypts with.
        user = v6user.User(self.seed)
        until(lambda: self._dead() or len(user.online()) == NODES, 60, "all nodes are online")
        return v6user.User(self.seed, key) if key else user

    def _dead(self) -> bool:
        for node in self.nodes:
            if not node.alive():
                raise AssertionError(f"a node has ended: {node.log.read_text()[-2000:]}")
        return False

    @property
    def node(self) -> Node:
        """The node of the researcher's own organization, at which most tests happen."""
        return self.nodes[0]

    @property
    def home(self) -> int:
        return self.seed["organizations"][0]["id"]

    def start(self, method: str, image: str = UNRULY, **arguments: Any) -> int:
        """A task with one run, at the home organization; returns the task's id."""
        return self.user.start(method, "federated_compute", image, arguments=arguments,
                               organizations=[self.home])

    def subtasks(self, task: int) -> list[int]:
        """The ids of the tasks that a central task has made."""
        found = self.user.client.task.list(parent=task)["data"]
        return sorted(child["id"] for child in found)

    def ended(self, task: int, timeout: float = 60) -> v6user.Run:
        """Wait for the end of a task's only run."""
        (run,) = self.user.wait_runs(task, FINAL, timeout)
        return run

    def active(self, task: int) -> v6user.Run:
        """Wait until HQ knows that a task's only run runs, and its program has begun."""
        self.user.wait_runs(task, {"active"} | FINAL)
        (run,) = until(
            lambda: [r for r in self.user.runs(task) if "begun" in (r.log or "")] or None,
            30, f"the log of task {task} at HQ shows that it has begun")
        return run

    def close(self) -> None:
        for node in self.nodes:
            node.stop()


class Bed:
    """All of it, made when it is first asked for, once for all tests."""

    def __init__(self) -> None:
        self.services = Services()
        self.collaborations: dict[str, Collaboration] = {}
        if self.services.ours:
            try:
                self.services.build_images()
            except BaseException:  # a signal, too: nobody else knows of these services yet
                self.services.close(keep_logs=True)
                raise

    def collaboration(self, name: str, encrypted: bool = False,
                      engines: Sequence[Engine] = (Engine(),) * NODES) -> Collaboration:
        if name not in self.collaborations:
            self.collaborations[name] = Collaboration(self.services, name, encrypted, engines)
        return self.collaborations[name]

    def close(self, keep_logs: bool) -> None:
        for collaboration in self.collaborations.values():
            collaboration.close()
        self.services.close(keep_logs)


_bed: list[Bed] = []


def bed() -> Bed:
    if not _bed:
        _bed.append(Bed())
    return _bed[0]


def close(keep_logs: bool) -> None:
    """Take the bed down, if anybody lay in it."""
    while _bed:
        _bed.pop().close(keep_logs)
