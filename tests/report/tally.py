#!/usr/bin/env python3
"""Count what the steps of tests/run did, and say it in one closing line.

    tally.py cases  RESULTS STEP EXIT LOG   the output of test programs: cargo test,
                                            libtest-mimic, tests/end-to-end
    tally.py one    RESULTS STEP EXIT LOG   a step that is one case: its exit code decides
    tally.py skip   RESULTS STEP REASON     a step that was not done
    tally.py fail   RESULTS STEP REASON     a step that could not be done
    tally.py close  RESULTS                 prints the skips, the failures with what they
                                            said, and `N passed, N failed, N skipped`;
                                            exits 1 on any failure, or if nothing passed

RESULTS is a file of JSON lines, one for each step. A program that ends without saying its
result counts as failed, and so does a step that fails without a failed case, such as one
that did not compile.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Colours, should a program write them into a file.
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PROGRAM = re.compile(r"^ *Running (?:unittests )?(\S+)(?: \((\S+)\))?$")
DOCTESTS = re.compile(r"^ *Doc-tests (\S+)$")
CASE = re.compile(r"^test (?:\[\S+\] )?(.+?) \.\.\. (.*)$")
RESULT = re.compile(
    r"test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored;")
SKIP = re.compile(r"^SKIP (\S+): (.+)$")
# What a case printed, with --show-output. A case that cannot be ignored any more when it
# finds out that it lacks something prints why and returns; it has not passed.
OUTPUT = re.compile(r"^---- (.+?)(?: stdout)? ----$")
END_OF_OUTPUT = ("successes:", "failures:")
LACKED = "SKIP "
# How much of what a failed case said is told again at the end.
LINES = 12
PANIC = " panicked at "


@dataclass
class Step:
    """What one step did. The lists name cases; a name is `PROGRAM::CASE`."""

    step: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)
    # What the failed ones said.
    words: dict[str, list[str]] = field(default_factory=dict)


def shortened(lines: list[str]) -> list[str]:
    """From the panic on, or the end, which tells most of a traceback and of a log."""
    lines = [line[:300] for line in lines if line.strip()]
    panic = next((at for at, line in enumerate(lines) if PANIC in line), None)
    return lines[-LINES:] if panic is None else lines[panic : panic + LINES]


class Reader:
    """Reads the output of one or more test programs, in cargo's form."""

    def __init__(self, step: str):
        self.result = Step(step)
        self.program: str | None = None
        self.reset()

    def reset(self) -> None:
        self.failed: list[str] = []
        self.ignored: list[list[str]] = []
        self.reasons: dict[str, str] = {}
        self.printing: str | None = None
        self.lacking: dict[str, str] = {}
        # Of which failed case, or case that prints, the lines are.
        self.speaking: str | None = None
        self.words: dict[str, list[str]] = {}

    def name(self, case: str) -> str:
        return f"{self.program}::{case}" if self.program else case

    def begin(self, program: str) -> None:
        self.end_of_program()
        self.program = program

    def end_of_program(self) -> None:
        """A program that was begun must have told its result."""
        if self.program is not None:
            self.result.failed += [self.name(case) for case in self.failed]
            self.keep_words()
            if not self.failed:
                self.result.failed.append(f"{self.program} (ended without a result)")
        self.program = None
        self.reset()

    def keep_words(self) -> None:
        for case in self.failed:
            if words := shortened(self.words.get(case, [])):
                self.result.words[self.name(case)] = words

    def line(self, text: str) -> None:
        text = ANSI.sub("", text.rstrip("\n"))
        if match := PROGRAM.match(text):
            source, binary = match.groups()
            # Unit tests have their crate's name, others that of their file.
            own = re.sub(r"-[0-9a-f]{16}$", "", Path(binary).name) if binary else source
            return self.begin(own)
        if match := DOCTESTS.match(text):
            return self.begin(f"{match[1]} (documentation)")
        if match := OUTPUT.match(text):
            self.printing = self.speaking = match[1]
        elif text in END_OF_OUTPUT:
            self.printing = self.speaking = None
        elif self.printing and text.startswith(LACKED):
            self.lacking[self.printing] = text.removeprefix(LACKED)
        elif match := SKIP.match(text):
            self.reasons[match[1].rsplit("::", 1)[-1]] = match[2]
        elif match := RESULT.search(text):
            self.total(*map(int, match.groups()))
        elif match := CASE.match(text):
            case, state = match[1].rstrip(), match[2]
            self.speaking = None
            if state.startswith("FAILED"):
                self.failed.append(case)
                self.speaking = case
            elif state.startswith("ignored"):
                # cargo test writes `ignored, REASON`, libtest-mimic `ignored (REASON)`.
                reason = re.sub(r"^\((.*)\)$", r"\1", state.removeprefix("ignored").lstrip(", "))
                self.ignored.append([case, reason])
        elif self.speaking:
            self.words.setdefault(self.speaking, []).append(text)

    def total(self, passed: int, failed: int, ignored: int) -> None:
        """The program's own numbers win: what a test prints may spoil the lines of cases."""
        lacking = [[case, why] for case, why in self.lacking.items() if case not in self.failed]
        self.result.passed += passed - len(lacking)
        ignored += len(lacking)
        self.ignored += lacking
        names = [self.name(case) for case in self.failed][:failed]
        names += [self.name("(a case whose name was not printed)")] * (failed - len(names))
        self.result.failed += names
        self.keep_words()
        skips = [
            [self.name(case), reason or self.reasons.get(case.rsplit("::", 1)[-1], "")]
            for case, reason in self.ignored
        ][:ignored]
        skips += [[self.name("(a case whose name was not printed)"), ""]] * (ignored - len(skips))
        self.result.skipped += [[name, reason or "no reason given"] for name, reason in skips]
        self.program = None
        self.reset()


def read_cases(step: str, exit_code: int, text: str) -> Step:
    reader = Reader(step)
    for line in text.splitlines():
        reader.line(line)
    reader.end_of_program()
    result = reader.result
    if exit_code != 0 and not result.failed:
        name = f"{step} (exit code {exit_code})"
        result.failed.append(name)
        result.words[name] = shortened(text.splitlines())
    elif not (result.passed or result.failed or result.skipped):
        result.failed.append(f"{step} (no case was run)")
    return result


def read_one(step: str, exit_code: int, text: str) -> Step:
    if exit_code:
        name = f"{step} (exit code {exit_code})"
        return Step(step, failed=[name], words={name: shortened(text.splitlines())})
    return Step(step, passed=1)


def load(path: Path) -> list[Step]:
    if not path.exists():
        return []
    return [Step(**json.loads(line)) for line in path.read_text().splitlines()]


def summary(steps: list[Step]) -> tuple[list[str], bool]:
    """The lines to print, and whether all is well."""
    passed = sum(step.passed for step in steps)
    failed = [name for step in steps for name in step.failed]
    skipped = [entry for step in steps for entry in step.skipped]
    lines = []
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        lines.append(f"skipped, {reason}:")
        lines += [f"  {name}" for name in names]
    if failed:
        lines.append("failed:")
        words = {name: words for step in steps for name, words in step.words.items()}
        for name in failed:
            lines.append(f"  {name}")
            lines += [f"      {line}" for line in words.get(name, [])]
    lines.append(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return lines, passed > 0 and not failed


def main(arguments: list[str]) -> int:
    match arguments:
        case ["cases" | "one" as how, results, step, code, log]:
            read = read_one if how == "one" else read_cases
            text = Path(log).read_text(encoding="utf-8", errors="replace")
            found = read(step, int(code), text)
        case ["skip", results, step, reason]:
            found = Step(step, skipped=[[step, reason]])
        case ["fail", results, step, reason]:
            found = Step(step, failed=[f"{step} ({reason})"])
        case ["close", results]:
            lines, well = summary(load(Path(results)))
            print("\n".join(lines))
            return 0 if well else 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    with open(results, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(found)) + "\n")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
