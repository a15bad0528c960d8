"""`python -m curate`."""

from __future__ import annotations

from curate.cli import main

if __name__ == "__main__":
    main()
