"""Nodes, HQ and the engine go away at the worst moments: each result comes once."""

from __future__ import annotations

import contextlib
import os
import random
import unittest

from bed import bed, until
from v6user import TimedOut

LONG = bool(os.environ.get("V6_TESTS_LONG"))


class Restart(unittest.TestCase):
    def setUp(self):
        self.at = bed().collaboration("plain")
        self.node = self.at.node
        self.at.user  # noqa: B018 - waits for the nodes

    def tearDown(self):
        if not self.node.alive():
            self.node.start()
        self.at.user.wait_online(timeout=60)

    def delivered_once(self, task: int, value: object, timeout: float = 60) -> None:
        run = self.at.ended(task, timeout)
        self.assertEqual(run.status, "completed", run.log)
        self.assertEqual(self.at.user.result(task), value)
        self.assertEqual(run.log.count("begun"), 1, run.log)
        until(lambda: self.node.runs() == [], 15, "nothing of the run is left at the engine")

    def state(self, run: int) -> str | None:
        """The run's state at the engine, as `v6-node runs` says it."""
        return next((row["state"] for row in self.node.runs() if row["run"] == run), None)

    def test_killed_in_the_middle_of_a_run(self):
        task = self.at.start("slow", seconds=5, value="killed")
        self.at.active(task)
        self.node.kill()
        self.node.start()
        self.delivered_once(task, "killed")

    def test_sigterm_leaves_at_once_and_the_run_goes_on(self):
        task = self.at.start("slow", seconds=6, value="left")
        run = self.at.active(task)
        seconds, code = self.node.terminate()
        self.assertEqual(code, 0)
        self.assertLess(seconds, 2)
        self.assertEqual(self.state(run.id), "running")
        self.node.start()
        self.delivered_once(task, "left")

    def test_finished_while_the_node_was_away(self):
        task = self.at.start("slow", seconds=3, value="away")
        run = self.at.active(task)
        self.node.kill()
        until(lambda: self.state(run.id) == "exited 0", 30, "the run ends without the node")
        (before,) = self.at.user.runs(task)
        self.assertEqual(before.status, "active")
        self.node.start()
        self.delivered_once(task, "away")

    def test_killed_by_the_user_while_the_node_was_away(self):
        task = self.at.start("slow", seconds=300)
        run = self.at.active(task)
        self.node.kill()
        self.at.user.kill(task)
        self.assertEqual(self.state(run.id), "running")
        self.node.start()
        until(lambda: self.node.runs() == [], 60, "the killed run is gone from the engine")
        self.assertEqual(self.at.ended(task).status, "killed by user")

    def test_killed_with_a_queue(self):
        tasks = [self.at.start("slow", seconds=1, value=f"run {n}") for n in range(12)]
        self.at.active(tasks[0])
        self.node.kill()
        self.node.start()
        for n, task in enumerate(tasks):
            self.delivered_once(task, f"run {n}", timeout=120)

    def test_hq_away_when_a_run_ends(self):
        if not bed().services.owns("hq"):
            self.skipTest("HQ is not ours to stop")
        task = self.at.start("slow", seconds=3, value="patient")
        run = self.at.active(task)
        bed().services.run("hq", "stop")
        try:
            until(lambda: self.state(run.id) == "exited 0", 30, "the run ends without HQ")
        finally:
            bed().services.run("hq", "up")
        self.delivered_once(task, "patient", timeout=120)

    def test_hq_away_at_start(self):
        if not bed().services.owns("hq"):
            self.skipTest("HQ is not ours to stop")
        self.node.terminate()
        bed().services.run("hq", "stop")
        try:
            size = self.node.log.stat().st_size
            self.node.start()
            until(lambda: "HQ cannot be joined yet" in self.node.log.read_text()[size:], 30,
                  "the node says that it waits for HQ")
            self.assertTrue(self.node.alive())
        finally:
            bed().services.run("hq", "up")
        self.at.user.wait_online(timeout=120)
        task = self.at.start("good")
        self.assertEqual(self.at.ended(task, timeout=120).status, "completed")

    def test_the_engine_restarts_in_the_middle_of_a_run(self):
        if not bed().services.owns("dockerd"):
            self.skipTest("the Docker engine is not ours to restart")
        task = self.at.start("slow", seconds=5)
        self.at.active(task)
        services = bed().services
        services.run("docker", "stop")
        services.run("docker", "up", "--own")
        # Docker ends its containers when it stops; that is told apart from a crash.
        run = self.at.ended(task, timeout=120)
        self.assertEqual(run.status, "crashed", run.log)
        self.assertIn("[node] the container engine ended the algorithm", run.log)
        again = self.at.start("good")
        self.assertEqual(self.at.ended(again, timeout=60).status, "completed")
        until(lambda: self.node.runs() == [], 15, "nothing of the runs is left at the engine")

    @unittest.skipUnless(LONG, "takes long: tests/run --long")
    def test_many_random_kills(self):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}", flush=True)
        dice = random.Random(seed)
        for turn in range(200):
            task = self.at.start("slow", seconds=0.5, value=f"turn {turn}")
            moment = dice.uniform(0, 2)
            with contextlib.suppress(TimedOut):
                self.at.user.wait_runs(task, {"completed"}, timeout=moment)
            self.node.kill()
            self.node.start()
            self.delivered_once(task, f"turn {turn}", timeout=120)
