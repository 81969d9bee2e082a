"""An algorithm that does what algorithms should not do: `ALGORITHM_METHOD` says what.

It keeps to the bare contract of files and environment, so that nothing between it and
the node softens what it does. The arguments of the task are a JSON object.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from pathlib import Path

BLOCK = 1 << 20


def variable(name: str) -> str:
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()


OUTPUT = Path(variable("OUTPUT_FILE"))


def say(text: str) -> None:
    print(text, flush=True)


def good(value: object = "good") -> None:
    """What every algorithm does."""
    with OUTPUT.open("r+b") as file:
        file.write(json.dumps(value).encode())


def nothing() -> None:
    """End well and write no result."""


def fail(code: int = 3) -> None:
    """End at once."""
    sys.exit(code)


def huge(mebibytes: int = 2048) -> None:
    """Write more than anybody wants, and go on if the system says no."""
    block = os.urandom(BLOCK)
    with OUTPUT.open("r+b", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(block)


def link(target: str = "/etc/passwd") -> None:
    """Put a link in the place of the result, in every way there is."""
    done = []
    for what, how in {
        "remove": OUTPUT.unlink,
        "rename": lambda: OUTPUT.rename(OUTPUT.with_name("other")),
        "replace": lambda: os.replace(_link(target, Path("/tmp/link")), OUTPUT),
        "place": lambda: _link(target, OUTPUT),
    }.items():
        try:
            how()
            done.append(what)
        except OSError as error:
            say(f"{what}: {error}")
    say(f"done: {done}")
    if OUTPUT.is_file() and not OUTPUT.is_symlink():
        good({"done": done})


def _link(target: str, path: Path) -> Path:
    path.symlink_to(target)
    return path


def stubborn(seconds: float = 600) -> None:
    """Ignore every request to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    slow(seconds)


def slow(seconds: float = 600, value: object = "slow") -> None:
    """Take time, and say when it begins."""
    say("begun")
    time.sleep(seconds)
    good(value)


def hungry(mebibytes: int = 2048) -> None:
    """Take more memory than there is."""
    say("begun")
    taken = []
    for _ in range(mebibytes):
        taken.append(b"x" * BLOCK)
    good(len(taken))


def flood(mebibytes: int = 200) -> None:
    """Print without end, and then do one's work."""
    line = b"x" * 1023 + b"\n"
    for _ in range(mebibytes):
        sys.stdout.buffer.write(line * 1024)
    sys.stdout.flush()
    good()


METHODS = {f.__name__: f for f in (good, nothing, fail, huge, link, stubborn, slow, hungry, flood)}

if __name__ == "__main__":
    METHODS[variable("ALGORITHM_METHOD")](**json.loads(Path(variable("INPUT_FILE")).read_text()))
