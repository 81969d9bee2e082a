#!/usr/bin/env python3
"""Check the documentation's own links: that files and headings are there, and that each
page of docs/ is in the book (SUMMARY.md).

    links.py ROOT      prints what is wrong, exits 1 if anything is
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub and mdBook make them."""
    lines = re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def pages(root: Path) -> list[Path]:
    """What belongs to the project, also if it is not committed yet."""
    names = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard",
         "*.md"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return sorted(root / name for name in names.split("\0") if name and (root / name).exists())


def wrong(root: Path) -> list[str]:
    found, linked = [], set()
    for page in pages(root):
        for link in LINK.findall(CODE.sub("", page.read_text())):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            name = page.relative_to(root)
            if not target.exists():
                found.append(f"{name}: {link}: there is no such file")
            elif anchor and anchor not in headings(target.read_text()):
                found.append(f"{name}: {link}: there is no such heading")
            if page.name == "SUMMARY.md":
                linked.add(target)
    for page in (root / "docs").rglob("*.md"):
        if page.name != "SUMMARY.md" and "reports" not in page.parts and page.resolve() not in linked:
            found.append(f"{page.relative_to(root)}: SUMMARY.md does not name it")
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    found = wrong(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "all links are good")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
