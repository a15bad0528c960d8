"""The manual as what it promises: pages, their fenced blocks, and the commands in them.

A page is one scenario, run from its top to its bottom in one folder:

- a block ```` ```console ```` holds commands after `$ `, each with some of its output; `exit=2` in the info
  string says how its commands end (0 where it says nothing);
- a block with `title=NAME` is a file of that name, written before the commands below it run;
- a block ```` ```text ```` with commands shows what wants a network; the test knows how it ends here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(?P<info>.*)$")
_COMMAND = re.compile(r"^\$ (?P<command>.+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    info: str
    text: str
    line: int
    """Of its first line inside, from 1."""

    @property
    def language(self) -> str:
        """The first word of the info string."""
        return self.info.split(" ")[0]

    def attribute(self, name: str) -> str | None:
        """The value of `name=` in the info string."""
        found = re.search(rf"(?:^|\s){name}=(\S+)", self.info)
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """One command of a page, with the lines that the page shows of its output."""

    text: str
    line: int
    shown: tuple[str, ...]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. Raises ValueError for one that does not end."""
    found: list[Block] = []
    inside: list[str] | None = None
    info, start = "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and inside is None:
            info, start, inside = fence["info"].strip(), number + 1, []
        elif fence and inside is not None:
            found.append(Block(info, "\n".join(inside) + "\n", start))
            inside = None
        elif inside is not None:
            inside.append(line)
    if inside is not None:
        raise ValueError(f"{page.name}:{start}: a block that does not end")
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a block; a line that ends in a backslash goes on in the next one."""
    found: list[Command] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        if start := _COMMAND.match(lines[at]):
            line, text = block.line + at, start["command"]
            while text.endswith("\\"):
                at += 1
                text = text[:-1].rstrip() + " " + lines[at].strip()
            found.append(Command(text, line, ()))
        elif found:
            found[-1] = Command(found[-1].text, found[-1].line, (*found[-1].shown, lines[at]))
        at += 1
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline(page: Path) -> list[str]:
    """What the prose has between back-ticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """Where the page's links lead, those within a page left out."""
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not t.startswith("#")]


def table(page: Path, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`, without head and rule; back-ticks are taken off."""
    lines = iter(prose(page).splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        rows.append([c.strip().replace("\\|", "|") for c in cells])
    return rows
