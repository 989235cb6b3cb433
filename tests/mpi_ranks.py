"""One rank of a pytest that runs under mpirun: all ranks run the same tests, and meet after each.

A rank whose test failed may have left the others in a collective that it never joined. It waits for them at
the meeting point, and if they do not come it prints its failure and aborts the job.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from mpi4py import MPI
from mpi_subrun import RECORDS, Event

GRACE = float(os.environ.get("MPI_GRACE", "10"))  # seconds that a failed rank waits for the others


class Ranks:
    def __init__(self, config: pytest.Config) -> None:
        # Collective, so it must come before anything that can fail on one rank alone.
        self.comm = MPI.COMM_WORLD.Dup()
        self.failure = ""
        records = os.environ.get(RECORDS)
        self.records = open(Path(records, f"rank-{self.comm.rank}.jsonl"), "w") if records else None
        config.option.maxfail = 0  # a rank that stopped early would leave the others waiting
        self._own_tmp_path(config)

    def _own_tmp_path(self, config: pytest.Config) -> None:
        """Ranks that share pytest's numbered directories remove each other's."""
        if config.option.basetemp is None:
            parent = tempfile.TemporaryDirectory()
            config.add_cleanup(parent.cleanup)
            config.option.basetemp = parent.name
        config.option.basetemp = Path(config.option.basetemp).absolute() / f"rank-{self.comm.rank}"
        config.option.basetemp.parent.mkdir(parents=True, exist_ok=True)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        single = [item for item in items if not item.get_closest_marker("mpi")]
        config.hook.pytest_deselected(items=single)
        items[:] = [item for item in items if item.get_closest_marker("mpi")]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.failure = ""
        self._record(item.nodeid, "start")
        result = yield
        self._record(item.nodeid, "end")
        self._meet(item.nodeid)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed:
            return
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self._record(report.nodeid, "skipped", reason.removeprefix("Skipped: "))
        else:
            crash = getattr(report.longrepr, "reprcrash", None)
            captured = [f"--- {title}\n{text}" for title, text in report.sections]
            self.failure = "\n".join(
                [crash.message.partition("\n")[0] if crash else "", report.longreprtext, *captured]
            )
            self._record(report.nodeid, "failed", self.failure)

    def _meet(self, test: str) -> None:
        arrival, limit = self.comm.Ibarrier(), time.monotonic() + GRACE
        while not arrival.Test():
            if self.failure and time.monotonic() > limit:
                print(f"\nrank {self.comm.rank}: {test} failed, and other ranks wait for it", file=sys.stderr)
                print(self.failure, file=sys.stderr, flush=True)
                self.comm.Abort(1)
            time.sleep(0.002)

    def _record(self, test: str, kind: str, text: str = "") -> None:
        if self.records:
            self.records.write(json.dumps(Event(test, kind, text)) + "\n")
            self.records.flush()
