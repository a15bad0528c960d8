"""What every refusal has in common, and what a folder holds before and after one."""

from __future__ import annotations

from pathlib import Path

from tests.commands.cli import Ran


def refused(ran: Ran, says: str, hint: str | None, code: int = 2) -> None:
    """It ended with `code`, no result, a message with `says` in it and, unless None, a hint with `hint` in it."""
    lines = ran.err.splitlines()
    errors = [line for line in lines if line.startswith("curate: ")]
    assert (ran.code, ran.out, len(errors)) == (code, "", 1), ran
    assert says in errors[0]
    assert "Traceback" not in ran.err
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(hints) == (hint is not None), ran.err
    assert hint is None or hint in hints[0]


def succeeded(ran: Ran) -> None:
    """The command ended well, and says nothing that looks otherwise."""
    assert ran.code == 0, ran
    assert not [
        line for line in ran.err.splitlines() if line.startswith(("error", "curate:", "hint:", "Traceback"))
    ]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, and every folder below it with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
