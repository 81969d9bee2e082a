"""The federated average over nodes of which each has an engine of its own.

The first node is where the central part runs, which needs a connection to HQ.
"""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterator
from contextlib import contextmanager

import other_engines as engines
from bed import PYTHON, RUST, Collaboration, until
from deployed import HEALTH, claims_made, kubectl, next_image_of_node

import expected
import pandas as pd


class Answers:
    """What a federated average comes to."""

    collaboration: Collaboration

    def check(self, image: str) -> None:
        answer = self.collaboration.user.average(image)
        whole = pd.read_csv(self.collaboration.folder / "data" / "whole.csv")
        self.assertEqual(expected.differences(whole, answer), [])
        runs = self.collaboration.user.runs(answer["task"])
        self.assertEqual({run.status for run in runs}, {"completed"})
        self.collaboration.answers[image] = answer["columns"]


class Nodes(Answers):
    """What holds for every collaboration, whatever runs the algorithms of its nodes."""

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


def one_of(found: list) -> list | None:
    return found if len(found) == 1 else None


class InCluster(Nodes, unittest.TestCase):
    """The node as a Deployment, installed by the chart into a namespace of restricted pods."""

    @classmethod
    def setUpClass(cls):
        cls.collaboration, cls.image = engines.in_cluster()

    def tearDown(self):
        until(lambda: self.collaboration.node.pods("run") == [], 30,
              "no run is left in the cluster")

    def test_its_answer_is_that_from_outside(self):
        self.check(self.image)
        # Mostly it has been asked for by its own test.
        outside, image = engines.cluster()
        if image not in outside.answers:
            outside.answers[image] = outside.user.average(image)["columns"]
        self.assertEqual(self.collaboration.answers[self.image], outside.answers[image])

    def test_its_pod_is_ready_while_hq_knows_it(self):
        node = self.collaboration.node
        until(lambda: node.alive() and node.ready(), 60, "the pod is ready")
        with node.passage.interruption():
            until(lambda: not node.ready(), 60, "the pod is not ready without HQ")
            # It lives all the same.
            self.assertEqual(node.inside("health", HEALTH).returncode, 0)
        until(node.ready, 60, "the pod is ready again")
        self.assertTrue(node.alive())

    def test_its_successor_need_not_wait(self):
        at = self.collaboration
        at.user  # noqa: B018 - waits for the nodes
        self.assertEqual(len(at.node.leases()), 1)
        at.node.scale(0)
        # One that was not given back is there for as long as it runs.
        self.assertEqual(at.node.leases(), [])
        at.node.scale(1)
        at.user.wait_online(timeout=60)

    @contextmanager
    def a_run_meanwhile(self) -> Iterator[None]:
        """Has a federated average begin before and end after, with the answer that is right."""
        at, user = self.collaboration, self.collaboration.user
        dataframe = user.extract(user.session(), self.image)
        # Then the central part waits for as long as a test wants it to.
        at.nodes[1].stop()
        try:
            central = user.start("central", "central_compute", self.image, dataframe=dataframe)
            (child,) = until(lambda: at.subtasks(central), 60, "there is a subtask")

            def others_have_ended() -> bool:
                ended = [run for run in user.runs(child) if run.status == "completed"]
                return len(ended) == len(at.nodes) - 1

            until(others_have_ended, 60, "the two other nodes have done the subtask")
            # The pod of the subtask goes when HQ has its result.
            (waiting,) = until(lambda: one_of(at.node.pods("run")), 30, "one run is left here")
            yield
            (still,) = at.node.pods("run")
            self.assertEqual(still["metadata"]["uid"], waiting["metadata"]["uid"])
        finally:
            at.nodes[1].start()
        user.wait(central)
        whole = pd.read_csv(at.folder / "data" / "whole.csv")
        self.assertEqual(expected.differences(whole, user.result(central)), [])
        self.assertEqual(at.subtasks(central), [child])
        runs = user.runs(central) + user.runs(child)
        self.assertEqual([run.status for run in runs], ["completed"] * (1 + len(at.nodes)))

    def test_its_pod_is_deleted_while_runs_run(self):
        with self.a_run_meanwhile():
            self.collaboration.node.delete_pod()

    def test_it_is_upgraded_while_runs_run(self):
        node = self.collaboration.node
        with self.a_run_meanwhile():
            before, revision = node.running(), node.revision()
            with self.assertRaisesRegex(AssertionError, "logFormat"):
                node.upgrade("logFormat=xml")
            self.assertEqual((node.running(), node.revision()), (before, revision))
            image = next_image_of_node()
            node.upgrade(f"image={image},node.logging.level=DEBUG", "--wait")
            upgraded = node.running()
            self.assertNotEqual(upgraded, before)
            (pod,) = node.pods("node")
            self.assertIn(image, [container["image"] for container in pod["spec"]["containers"]])
            self.assertIn("DEBUG", node.log_of_pod())
            # The chart hands this on, and the node refuses it.
            node.upgrade("runtime.max_concurrent_runs=many")
            until(lambda: not node.alive(), 60, "a node with a wrong configuration ends")
            node.helm("rollback", revision + 1, "--wait")
            self.assertNotEqual(node.running(), upgraded)
            self.assertIn("DEBUG", node.log_of_pod())
            self.assertTrue(node.alive() and node.ready())


class SealedCluster(Answers, unittest.TestCase):
    """An encrypted collaboration, of which a node is in the cluster and has its key from a Secret.

    What its runs and those of the node outside leave is on claims.
    """

    @classmethod
    def setUpClass(cls):
        cls.collaboration, cls.image = engines.sealed_cluster()

    def test_rust(self):
        here, _, outside = self.collaboration.nodes
        with claims_made() as owners:
            self.check(self.image)
            for node in (here, outside):
                until(lambda node=node: node.runs() == [], 30, "each run is removed")
        for node in (here, outside):
            owner = json.loads(node.config.read_text())["runtime"]["owner"]
            self.assertIn(owner, owners)
            claims = ("get", "pvc", "--all-namespaces", "-l", f"v6-runtime.owner={owner}")
            until(lambda claims=claims: kubectl(*claims, "-o", "name") == "", 30,
                  "no claim of a run is left")
