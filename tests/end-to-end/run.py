#!/usr/bin/env python3
"""The end-to-end tests: HQ 5.0.3, Docker, three nodes, the unmodified vantage6-client.

    tests/end-to-end/run.py [NAME...]     all, or those whose name has one of the words

Needs the Python of `tests/services/python.sh hq` and takes it by itself. Environment:
V6_NODE, the v6-node to test (default: the one that cargo builds for release);
V6_TESTS_WORK, a work folder in which HQ and Docker run already.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def use_python_of_hq() -> None:
    if importlib.util.find_spec("vantage6") is None:
        python = subprocess.run([HERE.parent / "services" / "python.sh", "hq"], check=True,
                                stdout=subprocess.PIPE, text=True).stdout.strip()
        os.execv(python, [python, "-B", *sys.argv])


def build_node() -> None:
    if "V6_NODE" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "-p", "v6-node"], cwd=ROOT,
                       check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        os.environ["V6_NODE"] = str(target / "release" / "v6-node")


def chosen(suite: unittest.TestSuite, words: list[str]) -> unittest.TestSuite:
    found = unittest.TestSuite()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            found.addTests(chosen(test, words))
        elif not words or any(word in test.id() for word in words):
            found.addTest(test)
    return found


def main() -> int:
    words = sys.argv[1:]
    if any(word.startswith("-") for word in words):
        print(__doc__, file=sys.stderr)
        return 0 if words == ["--help"] else 64
    use_python_of_hq()
    build_node()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(HERE))
    import bed

    import cases
    import test_apptainer
    import test_bad_input
    import test_engines
    import test_in_container
    import test_main_job
    import test_restart
    import test_slurm

    suite = unittest.TestSuite(
        unittest.defaultTestLoader.loadTestsFromModule(module)
        for module in (test_main_job, test_engines, test_bad_input, test_restart, test_in_container,
                       test_apptainer, test_slurm))
    code = 1
    try:
        code = cases.run(chosen(suite, words))
    finally:
        bed.close(keep_logs=code != 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
