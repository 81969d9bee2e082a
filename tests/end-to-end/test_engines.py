"""The federated average over nodes of which each has an engine of its own."""

from __future__ import annotations

import os
import unittest
from typing import Any

from bed import PYTHON, RUST, Collaboration, Engine, bed

import expected
import pandas as pd

ALGORITHMS = {PYTHON: "average-python", RUST: "average-rust"}


def apptainer(kind: str = "singularity", **settings: Any) -> Engine:
    """Apptainer with the algorithms of this machine's archives, as the user who has it."""
    folder = bed().services.work / "images"
    images = {name: folder / f"{what}.tar" for name, what in ALGORITHMS.items()}
    if not all(archive.exists() for archive in images.values()):
        folder.mkdir(exist_ok=True)
        bed().services.build_images("--to", folder, *ALGORITHMS.values())
    own = {
        "program": os.environ["V6_APPTAINER"],
        "images": {name: str(archive) for name, archive in images.items()},
    }
    return Engine(kind, {"singularity": own} | settings, os.environ["V6_APPTAINER_USER"])


class Average:
    """What holds for every collaboration, whatever runs the algorithms of its nodes."""

    needs: dict[str, str]
    collaboration: Collaboration

    @classmethod
    def setUpClass(cls):
        for what, variable in cls.needs.items():
            if variable not in os.environ:
                raise unittest.SkipTest(f"it needs {what}, which tests/run starts")
        # The first node is where the central part runs, which needs a connection to HQ.
        name = cls.__name__.lower()
        cls.collaboration = bed().collaboration(name, engines=cls.engines())

    def check(self, image: str) -> None:
        answer = self.collaboration.user.average(image)
        whole = pd.read_csv(self.collaboration.folder / "data" / "whole.csv")
        self.assertEqual(expected.differences(whole, answer), [])
        runs = self.collaboration.user.runs(answer["task"])
        self.assertEqual({run.status for run in runs}, {"completed"})

    def test_python(self):
        self.check(PYTHON)

    def test_rust(self):
        self.check(RUST)

    def test_check_of_each_node(self):
        for node in self.collaboration.nodes:
            done = node.run("check", "--runtime", node.engine.kind)
            self.assertEqual(done.returncode, 0, f"{node.engine.kind}: {done.stdout}{done.stderr}")


class Engines(Average, unittest.TestCase):
    needs = {"Apptainer": "V6_APPTAINER", "root's Podman": "V6_PODMAN_HOST"}

    @staticmethod
    def engines() -> tuple[Engine, ...]:
        podman = os.environ["V6_PODMAN_HOST"]
        bed().services.build_images(*ALGORITHMS.values(), DOCKER_HOST=podman)
        return (apptainer(run={"cpus": "none", "memory": "none"}),
                Engine(),
                Engine("podman", {"podman": {"host": podman}}))


class Jobs(Average, unittest.TestCase):
    needs = {"Apptainer": "V6_APPTAINER", "Slurm": "V6_SLURM_CONF"}

    @staticmethod
    def engines() -> tuple[Engine, ...]:
        slurm = {"conf": os.environ["V6_SLURM_CONF"], "listen": {"address": "127.0.0.1"}}
        return (apptainer("slurm", slurm=slurm, run={"cpus": "none", "memory": "1GiB"}),
                Engine(),
                apptainer(run={"cpus": "none", "memory": "none"}))
