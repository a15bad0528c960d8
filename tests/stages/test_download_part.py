"""How the work of a download is divided among processes."""

from __future__ import annotations

from curate.fetch.settings import FetchLimits
from curate.stages.download_part import shares


def test_processes_together_ask_a_host_for_no_more_than_one_would() -> None:
    for workers, per_host in ((1, 16), (8, 16), (32, 16), (64, 3), (16, 1)):
        fetchers, effort = shares(workers, 1_000, FetchLimits(per_host=per_host), 64)
        assert fetchers * effort["limits"].per_host <= per_host
        assert fetchers * effort["processes"] >= workers
    assert shares(32, 1_000, FetchLimits(), None)[0] == 8
    assert shares(32, 3, FetchLimits(), None)[0] == 3
    assert shares(0, 3, FetchLimits(per_host=5), None)[1]["limits"].per_host == 5
