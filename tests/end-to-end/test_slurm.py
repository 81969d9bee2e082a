"""What Slurm and its administrators do to a run: it is told, and nothing is lost or run twice."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
import unittest
from contextlib import contextmanager
from pathlib import Path

import other_engines as engines
from bed import FINAL, until

# slurmctld takes a node for lost after SlurmdTimeout, and looks now and then.
LOST = 120
# Seconds without slurmctld, in the long tests.
OUTAGE = 600


def runs(script: Path) -> bool:
    """Whether somebody executes a script."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(script) in (process / "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


class Slurm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.at = engines.jobs()
        cls.work = cls.at.services.work
        cls.environment = os.environ | {"SLURM_CONF": os.environ["V6_SLURM_CONF"]}

        # The first job waits for its image to be unpacked.
        cls.at.ended(cls.at.start("good"), 240)

    def tell(self, *command: str, **how: object) -> str:
        """A command of Slurm's; what it says."""
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def job(self, task: int, state: str = "RUNNING") -> tuple[str, str]:
        """The number of the job of a task's run, and the compute node that it is on, if on one."""
        (run,) = self.at.user.runs(task)
        jobs = self.tell("squeue", "--noheader", f"--states={state}", "--format=%i|%N|%j")
        ours = [line.split("|") for line in jobs.splitlines() if f".run-{run.id}." in line]
        self.assertEqual(len(ours), 1, jobs)
        return ours[0][0], ours[0][1]

    def service(self, verb: str) -> None:
        self.at.services.run("slurm", verb)

    def active(self, method: str, **arguments: object) -> int:
        task = self.at.start(method, **arguments)
        self.at.active(task)
        return task

    def crashed(self, task: int, *words: str, status: str = "crashed",
                timeout: float = 60) -> None:
        run = self.at.ended(task, timeout)
        self.assertEqual(run.status, status, run.log)
        for text in words:
            self.assertIn(text, run.log)
        self.gone()

    def completed(self, task: int, value: object) -> None:
        run = self.at.ended(task, 120)
        self.assertEqual(run.status, "completed", run.log)
        self.assertEqual(self.at.user.result(task), value)
        self.assertEqual(run.log.count("begun"), 1, run.log)
        self.gone()

    def gone(self) -> None:
        until(lambda: self.at.node.runs() == [], 30, "nothing of the run is left")

    def refused(self, *words: str, **settings: str) -> None:
        """`v6-node check` with other settings says these words, and that it will not do."""
        node = engines.changed(self.at, self._testMethodName, own=True, slurm=settings)
        done = node.run("check", "--runtime", "slurm")
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for text in words:
            self.assertIn(text, done.stdout + done.stderr)

    def test_a_partition_that_is_not_there(self):
        self.refused("nvalid partition", partition="nowhere")

    def test_an_option_that_is_ours(self):
        self.refused("--requeue", "is set for every job", arguments=["--requeue"])

    def test_a_step_and_an_image_ask_for_their_own(self):
        task = self.active("slow", seconds=5, value="nice")
        job = self.job(task)[0]
        asked = self.tell("squeue", "--noheader", f"--jobs={job}", "--format=%y %P %C %m %l")
        # An hour and the grace, and a minute more.
        self.assertEqual(asked.split(), ["7", "low", "2", "700M", "1:02:00"])
        self.completed(task, "nice")

    def test_a_folder_that_only_the_node_sees(self):
        folder = self.at.folder / "not-shared"
        folder.mkdir()
        user = pwd.getpwnam(self.at.node.engine.user)
        mount = f"mount -t tmpfs -o size=1g,mode=0700,uid={user.pw_uid} not-shared '{folder}'"
        node = engines.changed(self.at, self._testMethodName, data_dir=str(folder))
        engines.with_mounts(node, mount)
        done = node.run("check", "--runtime", "slurm")
        self.assertNotEqual(done.returncode, 0, done.stdout)
        question = "the same folder on the compute nodes?"
        self.assertIn(question, done.stdout + done.stderr)
        with engines.in_place_of_first(self.at, node):
            run = self.at.ended(self.at.start("good"), 60)
        self.assertEqual(run.status, "start failed", run.log)
        self.assertIn(question, run.log)

    def test_a_check_while_slurm_is_away(self):
        self.service("crash")
        try:
            self.refused("Unable to contact slurm controller", "scontrol ping")
        finally:
            self.service("up")

    def test_cancelled_by_an_administrator(self):
        task = self.active("slow")
        self.tell("scancel", self.job(task)[0])
        self.crashed(task, "cancelled at Slurm, by somebody else")

    def test_put_back_by_an_administrator(self):
        task = self.active("slow")
        job = self.job(task)[0]
        self.tell("scontrol", "update", f"JobId={job}", "Requeue=1")
        self.tell("scontrol", "requeuehold", job)
        self.crashed(task, "put back into the queue at Slurm, by somebody else")

    def test_preempted(self):
        task = self.active("slow")
        user = pwd.getpwnam(self.at.node.engine.user)
        self.tell("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--chdir=/",
                  "--output=/dev/null", f"--nodelist={self.job(task)[1]}", "--wrap=true",
                  user=user.pw_uid, group=user.pw_gid, extra_groups=[])
        self.crashed(task, "preempted by a job of a higher priority")

    def test_more_memory_than_asked_for(self):
        if "task/cgroup" not in Path(os.environ["V6_SLURM_CONF"]).read_text():
            self.skipTest("Slurm limits memory by cgroups of version 1 only, which are not here")
        task = self.at.start("hungry", mebibytes=2048)
        self.crashed(task, "used more memory than this node allows")

    def test_a_compute_node_is_lost(self):
        task = self.active("slow")
        job, name = self.job(task)
        pid = int((self.work / "run" / f"slurmd-{name}.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        # With all that it has started: nobody can say any more how the run ended.
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"/job_{job}/" in (process / "cgroup").read_text() or \
                        f"slurmstepd: [{job}." in (process / "cmdline").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue
        try:
            self.crashed(task, "the compute node has failed", timeout=LOST)
        finally:
            self.service("up")

    def test_slurm_is_away(self):
        task = self.active("slow", seconds=12, value="away")
        self.service("crash")
        try:
            # Its end is in the folder; Slurm need not be asked.
            run = self.at.ended(task, 60)
            self.assertEqual((run.status, self.at.user.result(task)), ("completed", "away"))
            task = self.at.start("slow", seconds=0, value="later")
            self.at.node.says("a job could not be submitted yet")
            self.outage()
            (run,) = self.at.user.runs(task)
            self.assertNotIn(run.status, FINAL)
        finally:
            self.service("up")
        self.completed(task, "later")

    def outage(self) -> None:
        """A long one, if there is time for it."""
        if "V6_TESTS_LONG" in os.environ:
            end = time.monotonic() + OUTAGE
            while time.monotonic() < end:
                self.assertTrue(self.at.node.alive())
                time.sleep(1)

    def test_killed_while_a_job_is_submitted(self):
        slow = engines.slurm_commands() / "slow"
        slow.touch()
        try:
            task = self.at.start("slow", seconds=1, value="once")
            until(lambda: runs(slow.with_name("sbatch")), 30, "a job is being submitted")
            self.at.node.kill()
        finally:
            slow.unlink()
        self.at.node.start()
        # The job of the attempt before comes into the queue, too, and does nothing.
        self.completed(task, "once")
        until(lambda: not self.tell("squeue", "--noheader", "--format=%j"), 30, "no job is left")

    def test_only_the_accounting_knows(self):
        asked = engines.slurm_commands() / "asked"
        cancelled = self.active("slow")
        self.tell("scontrol", "update", "PartitionName=low", "State=DOWN")
        try:
            waiting = self.at.start("slow")
            self.at.node.says("PartitionDown")
            job = self.job(waiting, "PENDING")[0]
            self.at.node.kill()
            self.tell("scontrol", "update", f"JobId={job}", "Deadline=now+1minute")
        finally:
            self.tell("scontrol", "update", "PartitionName=low", "State=UP")
        self.tell("scancel", self.job(cancelled)[0])
        self.service("forget")
        pid = int((self.work / "run" / "slurmdbd.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        before = len(asked.read_text().splitlines())
        self.at.node.start()
        try:
            # No answer is none that it never was.
            until(lambda: len(asked.read_text().splitlines()) >= before + 4, 60, "sacct is asked")
            for task in (cancelled, waiting):
                (run,) = self.at.user.runs(task)
                self.assertNotIn(run.status, FINAL)
        finally:
            self.service("up")
        for task, status, words in (
                (cancelled, "crashed", "cancelled at Slurm, by somebody else"),
                (waiting, "start failed", "could not be done before the deadline")):
            run = self.at.ended(task, 60)
            self.assertEqual((run.status, words in run.log), (status, True), run.log)
        self.gone()

    @contextmanager
    def account(self, name: str):
        """The first node asks for another account."""
        node = engines.changed(self.at, self._testMethodName, slurm={"account": name})
        with engines.in_place_of_first(self.at, node):
            yield node

    def test_no_more_jobs_may_be_submitted(self):
        with self.account("few") as node:
            first = self.active("slow", seconds=5, value="first")
            second = self.at.start("slow", seconds=0, value="second")
            node.says("a job could not be submitted yet")
            node.says("MaxSubmitJob")
            for task, value in ((first, "first"), (second, "second")):
                self.assertEqual(self.at.ended(task, 60).status, "completed")
                self.assertEqual(self.at.user.result(task), value)
        self.gone()

    def test_the_processor_time_is_used_up(self):
        with self.account("spent") as node:
            task = self.at.start("slow")
            node.says("AssocGrpCPUMinutesLimit")
            self.at.user.kill(task)
            self.assertEqual(self.at.ended(task).status, "killed by user")
        self.gone()

    def test_slurm_and_the_node_are_away(self):
        task = self.active("slow", seconds=12, value="both")
        self.at.node.kill()
        self.service("crash")
        self.service("up")
        self.at.node.start()
        self.completed(task, "both")
