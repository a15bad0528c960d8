"""`python -m curate.sampling tar SUBSET SHARD`: one shard of a virtual subset as a tar, on standard output."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from curate.errors import CurateError
from curate.sampling.folder import open_folder, write_tar

PIPE_CLOSED = 141
"""What a shell says of a process that wrote to a closed pipe; webdataset takes it for no error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m curate.sampling", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    tar = commands.add_parser("tar", help="print one shard as a tar")
    tar.add_argument("subset", type=Path, metavar="SUBSET", help="the folder of a virtual subset")
    tar.add_argument("shard", metavar="SHARD", help="such as 00000000; .tar may follow")
    tar.add_argument("--pool", type=Path, metavar="DIR", help="where the pool is now, if it has moved")
    chosen = parser.parse_args(arguments)
    try:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=1 << 20) as sink:
            write_tar(open_folder(chosen.subset, chosen.pool), chosen.shard, sink)
    except BrokenPipeError:
        return PIPE_CLOSED
    except CurateError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a command
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
