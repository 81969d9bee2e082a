"""The federated average over nodes of which each has an engine of its own.

The first node is where the central part runs, which needs a connection to HQ.
"""

from __future__ import annotations

import unittest

import other_engines as engines
from bed import PYTHON, RUST, Collaboration

import expected
import pandas as pd


class Nodes:
    """What holds for every collaboration, whatever runs the algorithms of its nodes."""

    collaboration: Collaboration

    def check(self, image: str) -> None:
        answer = self.collaboration.user.average(image)
        whole = pd.read_csv(self.collaboration.folder / "data" / "whole.csv")
        self.assertEqual(expected.differences(whole, answer), [])
        runs = self.collaboration.user.runs(answer["task"])
        self.assertEqual({run.status for run in runs}, {"completed"})

    def test_check_of_each_node(self):
        for node in self.collaboration.nodes:
            done = node.run("check", "--runtime", node.engine.kind)
            self.assertEqual(done.returncode, 0, f"{node.engine.kind}: {done.stdout}{done.stderr}")


class Average(Nodes):
    """Where the images are at each engine."""

    def test_python(self):
        self.check(PYTHON)

    def test_rust(self):
        self.check(RUST)


class Engines(Average, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.collaboration = engines.three_engines()


class Jobs(Average, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.collaboration = engines.jobs()


class Cluster(Nodes, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.collaboration, cls.image = engines.cluster()

    def test_rust(self):
        self.check(self.image)
