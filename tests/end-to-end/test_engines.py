"""The federated average over nodes of which each has an engine of its own."""

from __future__ import annotations

import os
import unittest

from bed import PYTHON, RUST, Engine, bed

import expected
import pandas as pd

ALGORITHMS = {PYTHON: "average-python", RUST: "average-rust"}


class Engines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        needs = {"Apptainer": "V6_APPTAINER", "root's Podman": "V6_PODMAN_HOST"}
        for what, variable in needs.items():
            if variable not in os.environ:
                raise unittest.SkipTest(f"it needs {what}, which tests/run starts")
        services = bed().services
        podman = os.environ["V6_PODMAN_HOST"]
        services.build_images(*ALGORITHMS.values(), DOCKER_HOST=podman)
        images = services.work / "images"
        images.mkdir(exist_ok=True)
        services.build_images("--to", images, *ALGORITHMS.values())
        apptainer = {
            "program": os.environ["V6_APPTAINER"],
            "images": {name: str(images / f"{what}.tar") for name, what in ALGORITHMS.items()},
        }
        # The first is where the central part runs, which needs a connection to HQ.
        cls.collaboration = bed().collaboration("engines", engines=(
            Engine("singularity", {"singularity": apptainer, "run": {"cpus": "none", "memory": "none"}},
                   os.environ["V6_APPTAINER_USER"]),
            Engine(),
            Engine("podman", {"podman": {"host": podman}}),
        ))

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
