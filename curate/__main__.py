"""`python -m curate`."""

from __future__ import annotations

from curate.cli import program

if __name__ == "__main__":
    program()
