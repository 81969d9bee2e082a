"""The two nodes that are compared, each with its own namespace and account in the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from cluster import SERVICES, Place, account, kubectl, push, server
from bed import Engine, Node, shell_variables

VERBS = ("create", "get", "list", "watch", "delete")
# What the Python node does in its namespace, and what it asks of the cluster when it starts.
PYTHON_RULES = [
    {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": VERBS},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "delete"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "delete"]},
]
PYTHON_EVERYWHERE = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "create"]}]


def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return listener.getsockname()[1]


class Contender:
    """A node of one organization, with the files that nodes.py has made for it."""

    label: str

    def __init__(self, folder: Path, number: int, log: Path) -> None:
        self.config, self.secrets = folder / f"node-{number}.yaml", folder / f"node-{number}.env"
        self.folder = folder / f"node-{number}"
        self.folder.mkdir(exist_ok=True)
        self.log = log
        self.place = Place(f"v6-bench-{os.getpid()}-{number}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Ours(Contender, Node):
    """`v6-node --runtime kubernetes` on this machine, outside of the cluster."""

    label = "v6-node"

    def __init__(self, folder: Path, number: int, log: Path, runs: int) -> None:
        Contender.__init__(self, folder, number, log)
        Node.__init__(self, self.config, self.secrets, log, Engine("kubernetes"))
        self.most_runs = runs

    def up(self) -> None:
        self.place.make(security="restricted")
        rights = self.folder / "rights.yaml"
        self.written(rights, "rbac", "--namespace", self.place.name)
        kubectl("apply", "-f", rights)
        config = json.loads(self.config.read_text())
        config["runtime"] |= {
            "max_concurrent_runs": self.most_runs,
            # The pods of the other node book nothing; these have to fit in beside each other.
            "run": {"pids": "none", "memory": "64MiB", "scratch": "1MiB"},
            "kubernetes": {"kubeconfig": str(self.kubeconfig()), "namespace": self.place.name,
                           "helper_image": self.helper_image(),
                           "booked_cpus": "5m"},
        }
        self.config.write_text(json.dumps(config))
        self.start()

    def written(self, path: Path, *command: str) -> str:
        """Have the program write a file; what it says beside."""
        with path.open("wb") as file:
            done = subprocess.run([self.program, *command], stdin=subprocess.DEVNULL, stdout=file,
                                  stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise AssertionError(f"v6-node {command[0]}: {done.stderr}")
        return done.stderr.strip()

    def helper_image(self) -> str:
        archive = self.folder / "helper.tar"
        digest = self.written(archive, "helper-image")
        # By its content: the cluster keeps what it has fetched.
        return push(archive, "v6-tests/bench-helper:1").removesuffix(":1") + f"@{digest}"

    def kubeconfig(self) -> Path:
        url, authority = server()
        (self.folder / "ca.crt").write_text(authority)
        path = self.folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {
                "server": url, "certificate-authority": str(self.folder / "ca.crt")}}],
            "users": [{"name": "bench", "user": {"token": self.place.token()}}],
            "contexts": [{"name": "bench", "context": {
                "cluster": "bench", "user": "bench", "namespace": self.place.name}}]}))
        return path

    def down(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.alive():
                self.terminate()
        self.stop()
        self.place.close()


class Python(Contender):
    """The unmodified vantage6-node, which takes itself to be in a pod of its cluster.

    It reads no kubeconfig, and has its folders at fixed places. So it gets those in a mount
    namespace of its own; that takes root. What it gives to runs are hostPath volumes, and this
    machine has to be the one that they are on.
    """

    label = "Python node"
    FOLDERS = {"tasks": "/app/tasks", "config": "/app/config", "databases": "/app/databases",
               "log": "/mnt/log", "data": "/mnt/data",
               "account": "/var/run/secrets/kubernetes.io/serviceaccount"}
    SCRIPT = ('set -e; while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; '
              'exec "$@"')
    MAIN = "from vantage6.node.cli.node import cli_node; cli_node()"

    def __init__(self, folder: Path, number: int, log: Path) -> None:
        super().__init__(folder, number, log)
        self.process: subprocess.Popen | None = None
        self.made: list[Path] = []

    def up(self) -> None:
        python = subprocess.run([SERVICES / "python.sh", "node"], check=True, text=True,
                                stdout=subprocess.PIPE).stdout.strip()
        self.place.make(*account(self.place, PYTHON_RULES, PYTHON_EVERYWHERE),
                        security="privileged")
        mounts = []
        for name, path in self.FOLDERS.items():
            (self.folder / name).mkdir()
            self.mount_point(Path(path))
            mounts += [str(self.folder / name), path]
        url, authority = server()
        (self.folder / "account" / "ca.crt").write_text(authority)
        (self.folder / "account" / "token").write_text(self.place.token())
        variables = shell_variables(self.secrets.read_text())
        database = self.folder / "databases" / "default.csv"
        shutil.copy(variables["DATABASE_DEFAULT_URI"], database)
        api = urlsplit(url)
        variables |= {
            "DATABASE_DEFAULT_URI": str(database), "V6_PROXY_HOST": "http://127.0.0.1",
            "KUBERNETES_SERVICE_HOST": api.hostname, "KUBERNETES_SERVICE_PORT": str(api.port)}
        (self.folder / "config" / "config.yml").write_text(json.dumps(self.configuration()))
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the measure, which then ends it.
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", self.SCRIPT, "sh",
                 *mounts, "--", python, "-c", self.MAIN, "start", "-c", "/app/config/config.yml"],
                env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)

    def configuration(self) -> dict:
        config = json.loads(self.config.read_text())
        del config["runtime"]
        return config | {
            "node_proxy_port": free_port(), "task_dir": str(self.folder / "tasks"),
            "task_namespace": self.place.name,
            # Whether pods reach the internet is shown with an image from there, and `true` would
            # not start without.
            "production": False,
            "share_config": True, "share_algorithm_logs": True, "prometheus": {"enabled": False},
            "logging": {
                "level": "INFO", "file": "node.log", "use_console": True, "backup_count": 2,
                "max_size": 10240, "datefmt": "%Y-%m-%d %H:%M:%S", "loggers": [],
                "format": "%(asctime)s.%(msecs)03d - %(name)-14s - %(levelname)-8s - %(message)s"},
        }

    def mount_point(self, path: Path) -> None:
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir()
                self.made.append(folder)

    def down(self) -> None:
        if self.alive():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
        if self.alive():
            self.process.kill()
            self.process.wait()
        for folder in reversed(self.made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self.place.close()
