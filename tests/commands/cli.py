"""Runs a command as the shell would, in this process: what it prints, and its exit code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

from curate import assets
from curate.cli import main


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


def curate(*args: object) -> Ran:
    """`curate ARGS`. An exception that the command line does not catch comes through."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = []  # the command sets up its own, on the stderr of now
    with (
        mock.patch.object(sys, "argv", ["curate", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for handler in root.handlers:
                handler.close()
            root.handlers[:], root.level = before
            assets.give({})  # the files of `--asset` were this command's
    return Ran(code, out.getvalue(), err.getvalue())
