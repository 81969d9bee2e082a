"""What a machine can lack that Apptainer needs: it is told, and a run that fails leaves nothing."""

from __future__ import annotations

import pwd
import unittest

import other_engines as engines
from bed import Node, until


class Apptainer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.at = engines.three_engines()
        cls.user = pwd.getpwnam(cls.at.node.engine.user)
        # The usual node has to be there for that, and unpacks the image once.
        cls.at.ended(cls.at.start("good"), 240)

    def refused(self, node: Node, *words: str) -> None:
        """`v6-node check` says these words, and that it will not do."""
        done = node.run("check", "--runtime", "singularity")
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for text in words:
            self.assertIn(text, done.stdout + done.stderr)

    def changed(self, **singularity: str) -> Node:
        return engines.changed(self.at, self._testMethodName, own=True, singularity=singularity)

    def test_an_old_apptainer(self):
        node = self.changed()
        program = node.identity["cwd"] / "apptainer"
        program.write_text("#!/bin/sh\necho apptainer version 1.1.9\n")
        program.chmod(0o755)
        self.refused(self.changed(program=str(program)), "Apptainer from 1.2", "apptainer version 1.1.9")

    def test_none_at_all(self):
        self.refused(self.changed(program="/no/such/apptainer"), "/no/such/apptainer")

    def test_no_user_namespaces(self):
        node = self.changed()
        # One is left, in which the node is itself again and may make no other.
        uid, gid = self.user.pw_uid, self.user.pw_gid
        script = "echo 1 >/proc/sys/user/max_user_namespaces && exec unshare --user " \
                 f'--map-user={uid} --map-group={gid} -- "$@"'
        node.prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
        self.refused(node, "runs cannot be isolated here", "user.max_user_namespaces")

    def test_no_subordinate_ids(self):
        cache = self.at.folder / "cache-without-subuid"
        cache.mkdir()
        mounts = "mount --bind /dev/null /etc/subuid; mount --bind /dev/null /etc/subgid; " \
                 f"mount -t tmpfs -o size=1g,mode=0700,uid={self.user.pw_uid} cache '{cache}'"
        node = engines.changed(self.at, self._testMethodName, singularity={"cache": str(cache)})
        with engines.in_place_of_first(self.at, engines.with_mounts(node, mounts)):
            run = self.at.ended(self.at.start("good"), 120)
        self.assertEqual(run.status, "completed", run.log)

    def test_a_full_disk(self):
        cache = self.at.folder / "cache-full"
        cache.mkdir()
        mounts = f"mount -t tmpfs -o size=1m,mode=0700,uid={self.user.pw_uid} cache '{cache}'"
        node = engines.changed(self.at, self._testMethodName, singularity={"cache": str(cache)})
        with engines.in_place_of_first(self.at, engines.with_mounts(node, mounts)):
            run = self.at.ended(self.at.start("good"), 120)
            self.assertIn("no space left on device", run.log.lower())
            self.assertNotIn(run.status, ("completed", "active"))
            until(lambda: self.at.node.runs() == [], 30, "nothing of the run is left")
        # The same at a disk with room.
        run = self.at.ended(self.at.start("good"), 120)
        self.assertEqual(run.status, "completed", run.log)
