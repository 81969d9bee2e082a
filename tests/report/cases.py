"""Run unittest cases and tell each in the words of `cargo test`, for tally.py to count."""

from __future__ import annotations

import sys
import time
import traceback
import unittest


class _Result(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    @staticmethod
    def name(test: unittest.TestCase) -> str:
        return test.id().removeprefix("__main__.")

    def tell(self, test: unittest.TestCase, state: str) -> None:
        print(f"test {self.name(test)} ... {state}", flush=True)

    def show(self, test: unittest.TestCase, error: tuple) -> None:
        self.tell(test, "FAILED")
        traceback.print_exception(*error, file=sys.stdout)
        sys.stdout.flush()

    def addSuccess(self, test):  # noqa: N802
        super().addSuccess(test)
        self.passed += 1
        self.tell(test, "ok")

    def addFailure(self, test, err):  # noqa: N802
        super().addFailure(test, err)
        self.show(test, err)

    def addError(self, test, err):  # noqa: N802
        super().addError(test, err)
        self.show(test, err)

    def addSubTest(self, test, subtest, err):  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.show(subtest, err)

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self.tell(test, f"ignored, {reason}")

    def addExpectedFailure(self, test, err):  # noqa: N802
        self.addError(test, err)

    def addUnexpectedSuccess(self, test):  # noqa: N802
        super().addUnexpectedSuccess(test)
        self.tell(test, "FAILED")


def run(suite: unittest.TestSuite) -> int:
    """Run the suite, print a line for each case and one with the numbers."""
    began = time.monotonic()
    result = _Result()
    suite.run(result)
    # Not the lists' lengths alone: the set-up of a class that fails is an error, too.
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    word = "FAILED" if failed else "ok"
    print(f"\ntest result: {word}. {result.passed} passed; {failed} failed; "
          f"{len(result.skipped)} ignored; 0 measured; 0 filtered out; "
          f"finished in {time.monotonic() - began:.2f}s", flush=True)
    return 1 if failed else 0
