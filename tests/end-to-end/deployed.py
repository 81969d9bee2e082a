"""A node in the cluster that its runs are in: a Deployment, installed by the Helm chart.

The namespace is its own, and takes only pods that are `restricted`. HQ, Keycloak and the
registry are on the machine's loopback, which no pod reaches. So what is asked of the bridge
that pods are on is passed on to there while the node is installed, and a container beside
the node's own does the same in its pod: to the node all three are where they are to everybody.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bed import TESTS, Engine, Node, bed, until

CHART = TESTS.parent / "charts" / "v6-node"
RELEASE = "hospital"
# Of all images that are put together here.
USER = 65532
CONFIG = "/etc/v6-node/node.yaml"
PROGRAM = "/usr/local/bin/v6-node"
HEALTH = "/run/v6-node/health.sock"
KEY_SECRET = "organization-key"
FINALIZER_GONE = {"metadata": {"finalizers": None}}


class Passage:
    """Passes on what comes to an address of this machine to ports of its loopback."""

    def __init__(self, address: str, ports: list[int]) -> None:
        self.address = address
        self.listeners = {port: socket.create_server((address, 0)) for port in ports}
        # They are closed when nobody uses them any more.
        self.open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.interrupted = False
        for port, listener in self.listeners.items():
            threading.Thread(target=self.accept, args=(listener, port), daemon=True).start()

    def ways(self) -> dict[int, int]:
        """At which port of the address each port of the loopback is."""
        return {port: listener.getsockname()[1] for port, listener in self.listeners.items()}

    def accept(self, listener: socket.socket, port: int) -> None:
        # Until the listener is closed.
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                try:
                    if self.interrupted:
                        raise ConnectionRefusedError
                    other = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    one.close()
                    continue
                self.open.update((one, other))
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=self.copy, args=pair, daemon=True).start()

    @contextlib.contextmanager
    def interruption(self) -> Iterator[None]:
        """Nothing of the loopback is reached meanwhile."""
        self.interrupted = True
        for end in list(self.open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self.interrupted = False

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for listener in self.listeners.values():
            # A thread that waits in accept is not woken by the closing alone.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def kubectl(*words: Any, given: Any = None) -> str:
    program = Path(os.environ["V6_KUBERNETES_WORK"]) / "kubernetes" / "bin" / "kubectl"
    done = subprocess.run([program, *map(str, words)], text=True, capture_output=True, timeout=120,
                          input=json.dumps(given) if given is not None else "")
    if done.returncode:
        raise AssertionError(f"kubectl {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def claims_made() -> Iterator[list[str]]:
    """The owners of the runs whose outputs got a claim meanwhile, once for each change of one."""
    program = bed().services.work / "kubernetes" / "bin" / "kubectl"
    owners: list[str] = []
    watch = subprocess.Popen(
        [program, "get", "pvc", "--all-namespaces", "-l", "v6-runtime.owner", "--watch",
         "-o", r'jsonpath={.metadata.labels.v6-runtime\.owner}{"\n"}'],
        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield owners
    finally:
        watch.terminate()
        owners += watch.communicate()[0].split()


def push(archive: Path, name: str) -> None:
    bed().services.run("kubernetes", "push", str(archive), name)


@functools.cache
def image_of_node(*options: str) -> str:
    """The image that the program writes of itself, by its content."""
    archive = bed().services.work / "images" / "v6-node.tar"
    with archive.open("wb") as file:
        done = subprocess.run([os.environ["V6_NODE"], "image", *options], stdout=file, text=True,
                              stderr=subprocess.PIPE, check=True)
    push(archive, "v6-tests/node:1")
    archive.unlink()
    return f"{os.environ['V6_REGISTRY_OPEN']}/v6-tests/node@{done.stderr.strip()}"


def next_image_of_node() -> str:
    """Another one: it trusts only the cluster's own authority."""
    certificate = bed().services.work / "images" / "authority.pem"
    cluster = json.loads(kubectl("config", "view", "--raw", "-o", "json"))["clusters"][0]["cluster"]
    certificate.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    return image_of_node("--certificates", str(certificate))


class Deployed(Node):
    """Its process is a pod's, and its configuration is values of the chart."""

    def __init__(self, config: Path, secrets: Path, log: Path, engine: Engine) -> None:
        super().__init__(config, secrets, log, engine)
        self.folder = config.parent
        self.namespace = f"v6-e2e-{os.getpid()}-{self.folder.name}"
        self.passage: Passage | None = None

    # --- What it consists of ---------------------------------------------------------
    def volume(self, purpose: str, path: Path) -> None:
        """A folder of the machine as the volume of a claim that has or will have this name."""
        kubectl("apply", "-f", "-", given={
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": f"{self.namespace}-{purpose}",
                         "labels": {"v6-e2e": self.namespace}},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
                "hostPath": {"path": str(path)},
                "claimRef": {"namespace": self.namespace, "name": purpose},
            }})

    def claim(self, name: str) -> dict:
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
                         "resources": {"requests": {"storage": "1Gi"}}}}

    def way_to_loopback(self) -> dict:
        """A container that passes on to the bridge what the node asks of its own loopback."""
        # The first process of a container heeds a signal only if it says so.
        lines = ["trap 'exit 0' TERM"]
        lines += [f"nc -ll -p {port} -e nc {self.passage.address} {way} &"
                  for port, way in self.passage.ways().items()]
        return {
            "name": "way", "image": f"{os.environ['V6_REGISTRY_OPEN']}/v6-tests/busybox:1",
            "command": ["/bin/sh", "-c", "\n".join([*lines, "wait"])],
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]}},
        }

    def values(self) -> dict:
        """The node's configuration, which is of the flat form, as a node of vantage6 5 has it."""
        flat = json.loads(self.config.read_text())
        runtime = {key: value for key, value in flat.pop("runtime").items()
                   if key not in ("kind", "data_dir", "runtime_dir", "docker")}
        given = self.environment
        database = Path(given["DATABASE_DEFAULT_URI"])
        hq = {"url": flat.pop("hq_url"), "port": flat.pop("port"), "path": flat.pop("api_path")}
        key = {"privateKey": {"secret": KEY_SECRET}} if flat["encryption"]["enabled"] else {}
        return key | {
            "image": image_of_node(),
            "node": flat | {
                "name": given["V6_NODE_NAME"], "apiKey": given["V6_API_KEY"], "hq": hq,
                "keycloak": {"url": given["KEYCLOAK_URL"], "realm": given["KEYCLOAK_REALM"]},
                # As the chart of vantage6 has it, where it is a folder of the machine.
                "databases": {"fileBased": [
                    {"name": "default", "type": "csv", "uri": database.name,
                     "volumePath": str(database.parent), "originalName": database.name}]},
            },
            "runtime": runtime,
            "databases": {"default": {"claim": "tables"}},
            "data": {"size": "1Gi", "storageClass": ""},
            "logFormat": "human",
            "extraContainers": [self.way_to_loopback()],
        }

    # --- Its life ----------------------------------------------------------------------
    def start(self, *options: str) -> None:
        try:
            self.install()
        except BaseException:  # a signal, too: nobody else knows of it yet
            self.stop()
            raise

    def install(self) -> None:
        nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
        (address,) = (one["address"] for one in nodes[0]["status"]["addresses"]
                      if one["type"] == "InternalIP")
        config = json.loads(self.config.read_text())
        keycloak = urlsplit(self.environment["KEYCLOAK_URL"])
        registry = os.environ["V6_REGISTRY_OPEN"]
        ports = [config["port"], keycloak.port, int(registry.rsplit(":", 1)[1])]
        self.passage = Passage(address, ports)
        push(bed().services.work / "images" / "busybox.tar", "v6-tests/busybox:1")
        kubectl("create", "-f", "-", given={
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": self.namespace,
                         "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
        kept = self.folder / "deployed-data"
        kept.mkdir()
        os.chown(kept, USER, USER)
        self.volume("tables", self.folder / "data")
        self.volume(f"{RELEASE}-data", kept)
        kubectl("create", "-f", "-", given=self.claim("tables"))
        values = self.folder / "values.json"
        values.touch(mode=0o600)
        values.write_text(json.dumps(self.values()))
        if config["encryption"]["enabled"]:
            kubectl("create", "secret", "generic", KEY_SECRET, "--namespace", self.namespace,
                    f"--from-file=private_key.pem={config['encryption']['private_key']}")
        self.helm("install", CHART, "--values", values)
        until(self.running, 120, "the pod of the node runs")

    def helm(self, verb: str, *options: Any) -> str:
        """A command of helm's on the release; what it prints."""
        done = subprocess.run(
            [os.environ["V6_HELM"], verb, RELEASE, *map(str, options), "--namespace",
             self.namespace], text=True, capture_output=True, timeout=120,
            env=dict(os.environ) | {"HOME": str(self.folder)})
        if done.returncode:
            raise AssertionError(f"helm {verb}: {done.stderr}")
        return done.stdout

    def upgrade(self, setting: str, *options: str) -> None:
        """Changes one value of the release, and leaves the others as they are."""
        self.helm("upgrade", CHART, "--reuse-values", "--set", setting, *options)

    def revision(self) -> int:
        """Which change of the release is the last one."""
        return json.loads(self.helm("status", "--output", "json"))["version"]

    def pods(self, part: str) -> list[dict]:
        """The pods of the namespace that are the node's (`node`), or runs' (`run`)."""
        label = {"node": f"app.kubernetes.io/instance={RELEASE}",
                 "run": "v6-runtime.owner,v6-runtime.part=run"}[part]
        words = ("get", "pods", "--namespace", self.namespace, "-l", label, "-o", "json")
        return json.loads(kubectl(*words))["items"]

    def running(self) -> list[str]:
        """The ids of its pods in which all containers run."""
        return [pod["metadata"]["uid"] for pod in self.pods("node")
                if (found := pod["status"].get("containerStatuses"))
                and "deletionTimestamp" not in pod["metadata"]
                and all("running" in container["state"] for container in found)]

    def ready(self) -> bool:
        """Whether the cluster takes its pod for ready."""
        return any(condition == {**condition, "type": "Ready", "status": "True"}
                   for pod in self.pods("node") for condition in pod["status"]["conditions"])

    def alive(self) -> bool:
        """Whether it has not ended by itself since it was installed."""
        if self.passage is None:
            return False
        for pod in self.pods("node"):
            for container in pod["status"].get("containerStatuses", []):
                waits = container["state"].get("waiting", {}).get("reason", "")
                if container["restartCount"] or waits.startswith(("Err", "Crash", "Image")):
                    self.keep_log("--previous" if container["restartCount"] else "--ignore-errors")
                    return False
        return True

    def log_of_pod(self, *options: str) -> str:
        return kubectl("logs", "--namespace", self.namespace, *options, "--container", "v6-node",
                       "-l", f"app.kubernetes.io/instance={RELEASE}", "--tail", "-1")

    def keep_log(self, *options: str) -> None:
        with contextlib.suppress(AssertionError), self.log.open("a") as log:
            log.write(self.log_of_pod(*options))

    def delete_pod(self) -> None:
        """As a machine that is drained does it; back when another has its place and runs."""
        (before,) = self.pods("node")
        self.keep_log()
        kubectl("delete", "pod", "--namespace", self.namespace, before["metadata"]["name"])
        uid = before["metadata"]["uid"]
        until(lambda: set(self.running()) - {uid}, 60, "the Deployment has another pod")

    def scale(self, replicas: int) -> None:
        """Has the Deployment so many pods, none or one; back when they are there or gone."""
        self.keep_log()
        kubectl("scale", "--namespace", self.namespace, f"deploy/{RELEASE}", "--replicas", replicas)
        until(lambda: len(self.pods("node")) == replicas, 60, f"pods of the node: {replicas}")

    def leases(self) -> list[str]:
        return kubectl("get", "leases", "--namespace", self.namespace, "-o", "name").split()

    def run(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.inside(verb, "--config", CONFIG, *options)

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The program once more, in its pod."""
        program = bed().services.work / "kubernetes" / "bin" / "kubectl"
        return subprocess.run(
            [program, "exec", "--namespace", self.namespace, f"deploy/{RELEASE}", "--container",
             "v6-node", "--", PROGRAM, *words],
            text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    def stop(self) -> None:
        if self.passage is None:
            return
        self.keep_log()
        # Perhaps it was never installed.
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            self.helm("uninstall", "--wait", "--timeout", "60s")
        # A failed test may have left runs, which the node would have removed.
        for pod in self.pods("run"):
            kubectl("patch", "pod", "--namespace", self.namespace, pod["metadata"]["name"],
                    "--type", "merge", "--patch", json.dumps(FINALIZER_GONE))
        kubectl("delete", "namespace", self.namespace, "--ignore-not-found")
        kubectl("delete", "pv", "-l", f"v6-e2e={self.namespace}")
        self.passage.close()
        self.passage = None


def images() -> None:
    """What the pod of the node consists of beside the node."""
    folder = bed().services.work / "images"
    folder.mkdir(exist_ok=True)
    if not (folder / "busybox.tar").exists():
        bed().services.build_images("--to", folder, "busybox")
