#!/usr/bin/env python3
"""What tally.py and cases.py count, on output as the programs print it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases  # noqa: E402
import links  # noqa: E402
import tally  # noqa: E402

CARGO = """\
   Compiling v6-node v0.1.0 (/somewhere/node)
    Finished `test` profile [unoptimized] target(s) in 1.00s
     Running unittests src/lib.rs (target/debug/deps/v6_node-0123456789abcdef)

running 3 tests
test config::a ... ok
test config::b ... FAILED
test config::c ... ignored, needs a moon

failures:

---- config::b stdout ----
test result: not this one

failures:
    config::b

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s

     Running tests/hq.rs (target/debug/deps/hq-0123456789abcdef)
SKIP hq::the_socket_syncs: needs a real HQ 5.0

running 2 tests
test the_socket_syncs ... ignored
test no_network       ... ignored (floor.no_network is not declared)
test other            ... ok

test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests v6_runtime

running 2 tests
test runtime-api/src/lib.rs - (line 3) ... ok
test runtime-api/src/lib.rs - x (line 9) - compile ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.5s
"""


class Counting(unittest.TestCase):
    def test_programs_of_cargo_test(self):
        step = tally.read_cases("tests", 101, CARGO)
        self.assertEqual(step.passed, 4)
        self.assertEqual(step.failed, ["v6_node::config::b"])
        self.assertEqual(step.skipped, [
            ["v6_node::config::c", "needs a moon"],
            ["hq::the_socket_syncs", "needs a real HQ 5.0"],
            ["hq::no_network", "floor.no_network is not declared"],
        ])

    def test_a_program_that_crashes_has_failed(self):
        text = CARGO[: CARGO.index("test other")] + "error: test failed, to rerun pass `--test hq`"
        step = tally.read_cases("tests", 101, text)
        self.assertEqual(step.failed, ["v6_node::config::b", "hq (ended without a result)"])
        self.assertEqual(step.passed, 1)

    def test_what_does_not_compile_has_failed(self):
        step = tally.read_cases("tests", 101, "error: could not compile `v6-node` (lib)\n")
        self.assertEqual(step.failed, ["tests (exit code 101)"])

    def test_a_case_that_gives_up_has_not_passed(self):
        text = """test a ... ok
test b ... ok

successes:

---- a stdout ----
SKIP no engine at unix:///nowhere: nobody answers

---- b stdout ----
hello


successes:
    a
    b

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
"""
        step = tally.read_cases("s", 0, text)
        self.assertEqual(step.passed, 1)
        self.assertEqual(step.skipped, [["a", "no engine at unix:///nowhere: nobody answers"]])

    def test_no_case_at_all_has_failed(self):
        self.assertEqual(tally.read_cases("tests", 0, "").failed, ["tests (no case was run)"])

    def test_spoilt_lines_do_not_change_the_numbers(self):
        text = "test a ... noise without end\ntest result: FAILED. 3 passed; 2 failed; 1 ignored; x"
        step = tally.read_cases("s", 1, text)
        self.assertEqual((step.passed, len(step.failed), len(step.skipped)), (3, 2, 1))

    def test_a_skip_without_a_reason_is_told_as_such(self):
        text = "test a ... ignored\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured"
        self.assertEqual(tally.read_cases("s", 0, text).skipped, [["a", "no reason given"]])

    def test_one_case_by_its_exit_code(self):
        self.assertEqual(tally.read_one("format", 0, "").passed, 1)
        step = tally.read_one("format", 2, "Diff in lib.rs\n\n-a\n")
        self.assertEqual(step.failed, ["format (exit code 2)"])
        self.assertEqual(step.words, {"format (exit code 2)": ["Diff in lib.rs", "-a"]})

    def test_what_a_failed_case_said(self):
        text = """test a ... FAILED
test b ... ok

successes:

---- b stdout ----
fine

failures:

---- a stdout ----
before
thread 'a' panicked at tests/a.rs:1:1:
a: Exited(137)

failures:
    a

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
"""
        said = ["thread 'a' panicked at tests/a.rs:1:1:", "a: Exited(137)"]
        self.assertEqual(tally.read_cases("s", 101, text).words, {"a": said})
        mimic = text.replace("---- a stdout ----", "---- a ----")
        self.assertEqual(tally.read_cases("s", 101, mimic).words, {"a": said})

    def test_what_a_failed_case_of_ours_said(self):
        text = "\n".join(["test a ... FAILED", *(f"line {n}" for n in range(20)), "test b ... ok",
                          "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured"])
        words = tally.read_cases("s", 1, text).words
        self.assertEqual(words, {"a": [f"line {n}" for n in range(8, 20)]})

    def close(self, *steps: tuple[str, ...]) -> tuple[int, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            results, log = f"{folder}/results", Path(folder, "log")
            log.write_text("no such word\n")
            for how, *rest in steps:
                tally.main([how, results, *(str(log) if one == "LOG" else one for one in rest)])
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                code = tally.main(["close", results])
        return code, out.getvalue().splitlines()

    def test_the_closing_lines(self):
        code, lines = self.close(
            ("one", "format", "0", "LOG"), ("skip", "Docker", "no engine"), ("fail", "HQ", "no disk"))
        self.assertEqual(code, 1)
        self.assertEqual(lines, [
            "skipped, no engine:", "  Docker", "failed:", "  HQ (no disk)",
            "1 passed, 1 failed, 1 skipped"])

    def test_a_failure_is_told_with_what_it_said(self):
        _, lines = self.close(("one", "links", "1", "LOG"))
        self.assertEqual(lines, [
            "failed:", "  links (exit code 1)", "      no such word", "0 passed, 1 failed, 0 skipped"])

    def test_all_well_and_nothing_done(self):
        self.assertEqual(
            self.close(("one", "format", "0", "LOG")), (0, ["1 passed, 0 failed, 0 skipped"]))
        self.assertEqual(self.close(), (1, ["0 passed, 0 failed, 0 skipped"]))


class Telling(unittest.TestCase):
    def test_each_kind_of_end_is_counted(self):
        class Sample(unittest.TestCase):
            def test_good(self):
                pass

            def test_bad(self):
                self.assertEqual(1, 2)

            def test_broken(self):
                raise ValueError("broken")

            @unittest.skip("needs a moon")
            def test_skipped(self):
                pass

            def test_parts(self):
                for part in range(3):
                    with self.subTest(part=part):
                        self.assertNotEqual(part, 1)

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cases.run(unittest.defaultTestLoader.loadTestsFromTestCase(Sample))
        self.assertEqual(code, 1)
        step = tally.read_cases("sample", code, out.getvalue())
        self.assertEqual(step.passed, 1)
        self.assertEqual(len(step.failed), 3)
        self.assertEqual([reason for _, reason in step.skipped], ["needs a moon"])

    def test_a_class_that_cannot_be_set_up_has_failed(self):
        class Sample(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                raise ValueError("no bed")

            def test_any(self):
                pass

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cases.run(unittest.defaultTestLoader.loadTestsFromTestCase(Sample))
        self.assertEqual(code, 1)
        self.assertEqual(len(tally.read_cases("sample", code, out.getvalue()).failed), 1)


class Links(unittest.TestCase):
    def test_what_is_not_there_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            (root / "docs").mkdir()
            (root / "README.md").write_text(
                "[a](docs/a.md) [b](docs/a.md#two-words) [c](docs/no.md) [d](docs/a.md#no)\n"
                "[e](https://example.org) `[f](no)`\n")
            (root / "docs" / "a.md").write_text("# Two words\n")
            subprocess.run(["git", "init", "-q", root], check=True)
            self.assertEqual(links.wrong(root), [
                "README.md: docs/no.md: there is no such file",
                "README.md: docs/a.md#no: there is no such heading",
                "docs/a.md: SUMMARY.md does not name it",
            ])


if __name__ == "__main__":
    sys.exit(cases.run(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])))
