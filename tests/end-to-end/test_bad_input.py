"""What people, images and configurations do wrong: HQ gets a fitting status and a reason
in plain words, and the node goes on serving."""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from pathlib import Path

from bed import FINAL, GRACE, LOG_LIMIT, MIB, PROBE, RUST, Node, bed, until


class Algorithms(unittest.TestCase):
    """Algorithms that misbehave, at a node that serves."""

    def setUp(self):
        self.at = bed().collaboration("plain")

    def tearDown(self):
        for node in self.at.nodes:
            self.assertTrue(node.alive(), f"a node has ended: see {node.log}")
        task = self.at.start("good")
        self.assertEqual(self.at.ended(task).status, "completed")
        self.assertEqual(self.at.user.result(task), "good")
        until(lambda: self.at.node.runs() == [], 15, "nothing of the runs is left at the engine")

    def ended(self, method: str, status: str, reason: str, timeout: float = 60, **options):
        run = self.at.ended(self.at.start(method, **options), timeout)
        self.assertEqual(run.status, status, run.log)
        self.assertIn(reason, run.log)
        self.assertIsNotNone(run.finished_at)
        return run

    def test_an_image_that_is_not_allowed(self):
        self.ended("any", "not allowed", PROBE, image=PROBE)

    def test_an_image_that_does_not_exist(self):
        missing = RUST.replace("v6-average-rust", "v6-unruly").replace(":test", ":no-such-tag")
        self.ended("any", "non-existing Docker image", missing, image=missing)

    def test_no_output(self):
        self.ended("nothing", "unexpected output", "without writing a result")

    def test_two_gibibytes_of_output(self):
        run = self.ended("huge", "crashed", "exit code 1", timeout=120)
        self.assertIn("File too large", run.log)

    def test_a_link_instead_of_the_output(self):
        task = self.at.start("link")
        run = self.at.ended(task)
        self.assertEqual(run.status, "completed", run.log)
        self.assertEqual(self.at.user.result(task), {"done": []}, run.log)

    def test_ends_at_once(self):
        self.ended("fail", "crashed", "exit code 3")

    def test_ignores_sigterm_and_is_killed(self):
        task = self.at.start("stubborn")
        run = self.at.active(task)
        self.at.user.kill(task)
        run = self.at.ended(task)
        self.assertEqual(run.status, "killed by user")
        until(lambda: self.at.node.runs() == [], GRACE + 10, "the container is gone")

    def test_a_flood_on_stdout(self):
        task = self.at.start("flood", mebibytes=200)
        run = self.at.ended(task, timeout=120)
        self.assertEqual(run.status, "completed", run.log[-500:])
        self.assertLess(len(run.log), LOG_LIMIT + 64 * 1024)
        self.assertEqual(self.at.user.result(task), "good")
        self.assertLess(self.at.node.peak_memory(), 150 * MIB)

    def test_a_method_that_the_image_lacks(self):
        self.ended("no-such-method", "crashed", "KeyError")

    def test_a_database_that_is_gone(self):
        node = self.at.nodes[2]
        path = Path(node.environment["DATABASE_DEFAULT_URI"])
        aside = path.rename(path.with_name("aside"))
        try:
            user = self.at.user
            _, task = user.start_extraction(user.session(), RUST)
            runs = {run.organization: run for run in user.wait_runs(task, FINAL)}
        finally:
            aside.rename(path)
        run = runs[self.at.seed["organizations"][2]["name"]]
        self.assertEqual(run.status, "failed", run.log)
        self.assertIn('the data of database "default" at this node is not there', run.log)

    def test_a_database_that_the_run_may_not_read(self):
        node = self.at.nodes[2]
        path = Path(node.environment["DATABASE_DEFAULT_URI"])
        path.chmod(0o600)
        try:
            user = self.at.user
            _, task = user.start_extraction(user.session(), RUST)
            runs = {run.organization: run for run in user.wait_runs(task, FINAL)}
        finally:
            path.chmod(0o644)
        run = runs[self.at.seed["organizations"][2]["name"]]
        self.assertEqual(run.status, "failed", run.log)
        self.assertIn("may not be read by algorithms", run.log)


class Encrypted(unittest.TestCase):
    def test_input_that_cannot_be_decrypted(self):
        from vantage6.common import bytes_to_base64s
        from vantage6.common.encryption import RSACryptor

        at = bed().collaboration("encrypted", encrypted=True)
        # Not RSACryptor(path): there is one object of it, whatever the path.
        stranger = RSACryptor.create_new_rsa_key(at.folder / "stranger.pem")
        wrong = bytes_to_base64s(RSACryptor.create_public_key_bytes(stranger))
        cryptor = at.user.client.cryptor
        right = cryptor.encrypt_bytes_to_str
        cryptor.encrypt_bytes_to_str = lambda data, _key: right(data, wrong)
        try:
            task = at.start("good")
        finally:
            cryptor.encrypt_bytes_to_str = right
        run = at.ended(task)
        self.assertEqual(run.status, "failed")
        self.assertIn("cannot be decrypted", run.log)
        again = at.start("good")
        self.assertEqual(at.ended(again).status, "completed")
        self.assertEqual(at.user.result(again), "good")


class Configurations(unittest.TestCase):
    """A node that cannot work says why and what to do, and ends with a fitting code."""

    @classmethod
    def setUpClass(cls):
        cls.at = bed().collaboration("plain")
        cls.folder = cls.at.folder / "wrong"
        cls.folder.mkdir()

    def start(self, change, code: int, *texts: str, **variables: str) -> str:
        """Start a node with a changed configuration, which has to end."""
        config = json.loads(self.at.node.config.read_text())
        config["runtime"]["owner"] = f"e2e-{os.getpid()}-wrong"
        for key in ("data_dir", "runtime_dir"):
            config["runtime"][key] = str(self.folder / key)
        change(config)
        path = self.folder / f"{self.id().rsplit('.', 1)[-1]}.yaml"
        path.write_text(json.dumps(config))
        node = Node(path, self.at.folder / "node-1.env", path.with_suffix(".log"))
        node.environment |= variables
        done = subprocess.run(node.command("start", "--runtime", "docker"), text=True, timeout=30,
                              env=node.environment, stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual(done.returncode, code, done.stderr)
        for text in texts:
            self.assertIn(text, done.stderr)
        return done.stderr

    @staticmethod
    def encrypt_with(path: Path | str):
        def change(config: dict) -> None:
            config["encryption"] = {"enabled": True, "private_key": str(path)}
        return change

    def test_a_wrong_api_key(self):
        told = self.start(lambda config: None, 77, "V6_API_KEY", V6_API_KEY="not-the-key")
        self.assertNotIn("not-the-key", told)

    def test_a_missing_private_key(self):
        self.start(self.encrypt_with("/nowhere/key.pem"), 64, "/nowhere/key.pem")

    def test_a_private_key_that_is_none(self):
        path = self.folder / "no-key.pem"
        path.write_text("this is no key\n")
        self.start(self.encrypt_with(path), 64, str(path))

    def test_encryption_where_there_is_none(self):
        from vantage6.common.encryption import RSACryptor

        path = self.folder / "key.pem"
        RSACryptor.create_new_rsa_key(path)
        self.start(self.encrypt_with(path), 64, "not encrypted at HQ", "set it to false")

    def test_a_mistyped_key(self):
        def change(config: dict) -> None:
            config["policies"]["allowed_algoritms"] = config["policies"].pop("allowed_algorithms")
        self.start(change, 64, "allowed_algoritms", "allowed_algorithms")

    def test_another_node_under_the_same_name(self):
        owner = json.loads(self.at.node.config.read_text())["runtime"]["owner"]

        def change(config: dict) -> None:
            same = json.loads(self.at.node.config.read_text())["runtime"]
            config["runtime"] |= {key: same[key] for key in ("data_dir", "runtime_dir", "owner")}
        config = json.loads(self.at.node.config.read_text())
        change(config)
        path = self.folder / "second.yaml"
        path.write_text(json.dumps(config))
        second = Node(path, self.at.folder / "node-1.env",
                      self.at.services.log / "e2e-second.log")
        second.start()
        try:
            second.says(owner)
            second.says("another node works under this name")
            self.assertTrue(second.alive())
            seconds, code = second.terminate()
            self.assertEqual(code, 0)
            self.assertLess(seconds, 2)
        finally:
            second.stop()
