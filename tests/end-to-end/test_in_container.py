"""The node itself in a container that has the engine's socket, as docs/operating.md says."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

import engine
from bed import RUST, bed, shell_variables, until
from v6user import TaskFailed

import certifi
import expected
import pandas as pd

NAME = f"v6-e2e-{os.getpid()}"
IMAGE = f"localhost/{NAME}-node"
# Where the node has its folders, other than where the engine has them.
DATA = "/var/lib/v6-node"
RUN = "/run/v6-node"
CONFIG = "/etc/v6-node"
SOCKET = "/var/run/docker.sock"
KNOWN = "HQ knows this node"
NOT_POSSIBLE = "granted connections are not possible"


def root_file_system(program: Path) -> bytes:
    """The program, the libraries that it is linked with, and authorities to trust, as tar."""
    linked = subprocess.run(["ldd", program], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL).stdout
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        tar.add(program, "usr/local/bin/v6-node")
        for path in re.findall(r"(?:=> )?(/\S+) \(0x", linked):
            tar.add(path, path.lstrip("/"))
        tar.add(certifi.where(), "etc/ssl/certs/ca-certificates.crt")
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return archive.getvalue()


class InContainer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.at = bed().collaboration("contained")
        cls.at.user  # noqa: B018 - waits for the nodes
        cls.at.node.terminate()
        engine.import_image(IMAGE, root_file_system(Path(os.environ["V6_NODE"])))
        cls.addClassCleanup(engine.call, "DELETE", f"/images/{IMAGE}", force=1)

    def volume(self, purpose: str) -> str:
        """A new volume of the engine, until the test ends."""
        name = f"{NAME}-{purpose}"
        engine.call("POST", "/volumes/create", {"Name": name})
        self.addCleanup(engine.call, "DELETE", f"/volumes/{name}", force=1)
        return name

    def container(self, *command: str, mounts: tuple[str, ...]) -> engine.Container:
        """A container of the node's program, not started yet."""
        files = self.at.folder
        mounts = (*mounts, f"{files}/contained:{CONFIG}:ro", f"{files}/data:{files}/data:ro")
        docker = urlsplit(os.environ["DOCKER_HOST"])
        settings = {"kind": "docker", "data_dir": DATA, "runtime_dir": RUN}
        if docker.scheme == "unix":
            mounts = (*mounts, f"{docker.path}:{SOCKET}")
            settings["docker"] = {"host": f"unix://{SOCKET}"}
        config = json.loads(self.at.node.config.read_text())
        config["runtime"] |= settings
        (files / "contained").mkdir(exist_ok=True)
        (files / "contained" / "node.yaml").write_text(json.dumps(config))
        secrets = shell_variables((files / "node-1.env").read_text())
        container = engine.Container(
            f"{NAME}-{command[0]}", Image=IMAGE, Entrypoint=["/usr/local/bin/v6-node"],
            Cmd=[*command, "--config", f"{CONFIG}/node.yaml"],
            Env=[f"{name}={value}" for name, value in secrets.items()],
            HostConfig={"NetworkMode": "host", "Binds": list(mounts)})
        self.addCleanup(container.remove)
        return container

    def says(self, node: engine.Container, text: str, times: int = 1) -> None:
        def said() -> bool:
            if not node.state()["Running"]:
                raise AssertionError(f"the node has ended: {node.log()[-2000:]}")
            return node.log().count(text) >= times

        until(said, 60, f"{text!r} in the node's log")

    def start(self, *mounts: str) -> engine.Container:
        node = self.container("start", mounts=mounts)
        self.addCleanup(self.finished)
        node.start()
        self.says(node, KNOWN)
        return node

    def finished(self) -> None:
        """A run is removed after HQ knows its end."""
        until(lambda: self.at.node.runs() == [], 60, "nothing of the runs is left at the engine")

    def check(self, *mounts: str) -> str:
        """What `v6-node check` says where the node is not running."""
        check = self.container("check", mounts=mounts)
        check.start()
        code = check.wait()
        self.assertEqual(code, 0, check.log())
        return check.log()

    def serves(self, node: engine.Container) -> None:
        """The main job, a central task and its subtasks, with the home node in its container."""
        try:
            answer = self.at.user.average(RUST)
        except TaskFailed as error:
            self.fail(f"{error}\n{node.log()[-4000:]}")
        whole = pd.read_csv(self.at.folder / "data" / "whole.csv")
        self.assertGreater(len(answer["columns"]), 5)
        self.assertEqual(expected.differences(whole, answer), [])
        self.assertNotIn(NOT_POSSIBLE, node.log())

    def test_folders_of_the_machine(self):
        outside = self.at.folder / "outside"
        for name in ("run", "data"):
            (outside / name).mkdir(parents=True)
        mounts = (f"{outside}/run:{RUN}", f"{outside}/data:{DATA}")
        self.assertIn("ok    connections", self.check(*mounts))
        self.serves(self.start(*mounts))

    def test_volumes_of_the_engine(self):
        mounts = (f"{self.volume('run')}:{RUN}", f"{self.volume('data')}:{DATA}")
        node = self.start(*mounts)
        self.serves(node)
        # It is process 1 of its container, to which signals mean nothing by themselves.
        task = self.at.start("slow", seconds=6, value="left")
        self.at.active(task)
        began = time.monotonic()
        node.stop(20)
        self.assertEqual(node.state()["ExitCode"], 0, node.log())
        self.assertLess(time.monotonic() - began, 3)
        node.start()
        self.says(node, KNOWN, times=2)
        run = self.at.ended(task)
        self.assertEqual(run.status, "completed", run.log)
        self.assertEqual(run.log.count("begun"), 1, run.log)
        self.assertEqual(self.at.user.result(task), "left")

    def test_sockets_that_the_engine_does_not_see(self):
        mounts = (f"{self.volume('data')}:{DATA}",)
        why = f"{NOT_POSSIBLE}: {RUN} is inside this process's own container"
        said = self.check(*mounts)
        self.assertIn("warn  connections", said)
        self.assertIn(why, said)
        node = self.start(*mounts)
        self.says(node, why)
        central = self.at.user.start("central", "central_compute", RUST)
        run = self.at.ended(central)
        self.assertEqual(run.status, "failed", run.log)
        self.assertIn("[node] the run could not be started", run.log)
        self.assertIn("granted connections", run.log)
        # What needs no connection goes on.
        task = self.at.start("good")
        run = self.at.ended(task)
        self.assertEqual(run.status, "completed", run.log)
