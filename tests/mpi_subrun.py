"""How plain pytest runs the tests marked `mpi`: `mpirun -n N python -m pytest --with-mpi` for each size N.

A sub-run holds exactly the tests that were selected. It starts when the first of them is due, and each is
then reported under its own name. Ranks write what happens to them into files as it happens (mpi_ranks.py),
so that a test that ends the whole job still has its message.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest
from launch import HangError, run, under_mpirun

RECORDS = "MINITRAIN_TEST_RECORDS"  # environment variable of the ranks: the folder for `rank-R.jsonl`
TEST_LIMIT = float(os.environ.get("MPI_TEST_LIMIT", "120"))  # seconds a test; then ranks print stacks and end
SUBRUN_LIMIT = 1000.0  # seconds for all tests of one size together

_PYTEST_FRAME = re.compile(r' +File "(<frozen runpy>|.*/(_pytest|pytest|pluggy|mpi4py)/.*\.py").*\n')


class Event(NamedTuple):
    """What a rank writes down: a test's `start`, its `failed` or `skipped` with the text, and its `end`."""

    test: str
    kind: str
    text: str = ""


class Verdict(NamedTuple):
    """What became of a test, all ranks together: `passed`, `skipped` or `failed`, and why."""

    outcome: str
    text: str = ""


class SubRuns:
    """The plugin: puts, in the place of every test marked `mpi`, one item per size."""

    def __init__(self) -> None:
        self.sizes = [int(size) for size in os.environ.get("MPI_SIZES", "2,4,8").split(",")]

    @pytest.hookimpl(trylast=True)  # after -k and -m
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        marked = [(item, mark) for item in items if (mark := item.get_closest_marker("mpi"))]
        items[:] = [item for item in items if not item.get_closest_marker("mpi")]
        for size in self.sizes:
            tests = [item for item, mark in marked if mark.kwargs.get("min_size", 1) <= size]
            subrun = SubRun(config, size, [item.nodeid for item in tests])
            items += [OnRanks.of(item, subrun) for item in tests]
        for item, mark in marked:
            if mark.kwargs.get("min_size", 1) > max(self.sizes):
                reason = f"needs {mark.kwargs['min_size']} ranks, and MPI_SIZES ends at {max(self.sizes)}"
                item.add_marker(pytest.mark.skip(reason=reason), append=False)
                items.append(item)


class OnRanks(pytest.Item):
    """A test as run on several ranks."""

    test: str  # its name on the ranks
    subrun: "SubRun"
    line: int | None

    @classmethod
    def of(cls, item: pytest.Item, subrun: "SubRun") -> "OnRanks":
        new = cls.from_parent(item.parent, name=f"{item.name} ({subrun.ranks} ranks)")
        new.test, new.subrun = item.nodeid, subrun
        new.line = item.location[1]
        return new

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, self.line, self.name

    def runtest(self) -> None:
        verdict = self.subrun.verdicts[self.test]
        if verdict.outcome == "failed":
            pytest.fail(verdict.text, pytrace=False)
        if verdict.outcome == "skipped":
            pytest.skip(f"{self.name}: {verdict.text}")


class SubRun:
    """The tests of one size."""

    def __init__(self, config: pytest.Config, ranks: int, tests: list[str]) -> None:
        self.config = config
        self.ranks = ranks
        self.tests = tests

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Runs them, when first asked for."""
        with tempfile.TemporaryDirectory() as folder:
            job = self._run(Path(folder))
            events = [_read(Path(folder, f"rank-{rank}.jsonl")) for rank in range(self.ranks)]
        log = _PYTEST_FRAME.sub("", job.stderr.strip() or job.stdout.strip())[-8000:]
        verdicts = {test: self._judge(test, events, log) for test in self.tests}
        if job.returncode != 0 and all(verdict.outcome != "failed" for verdict in verdicts.values()):
            text = f"no test failed, yet mpirun ended with code {job.returncode}\n{log}"
            verdicts[self.tests[-1]] = Verdict("failed", text)
        return verdicts

    def _run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        selection = folder / "selection"
        selection.write_text("\n".join(self.tests))
        command = [
            *(sys.executable, "-m", "mpi4py", "-m", "pytest", "--with-mpi", "--long", "-q", "--color=no"),
            f"--rootdir={self.config.rootpath}",
            f"--config-file={self.config.inipath}",
            f"--basetemp={folder / 'tmp'}",
            *("-p", "no:hypothesispytest"),  # whose import takes longer than most of these tests
            *("-o", f"faulthandler_timeout={TEST_LIMIT}", "-o", "faulthandler_exit_on_timeout=true"),
            f"@{selection}",
        ]
        environment = {RECORDS: str(folder)}
        try:
            return run(under_mpirun(command, self.ranks), self.config.rootpath, SUBRUN_LIMIT, environment)
        except HangError as hang:
            return subprocess.CompletedProcess(command, -1, "", str(hang))

    def _judge(self, test: str, events: list[list[Event]], log: str) -> Verdict:
        mine = [[event for event in rank if event.test == test] for rank in events]
        failed: dict[str, list[int]] = {}  # text -> ranks
        for rank, its_events in enumerate(mine):
            for event in its_events:
                if event.kind == "failed":
                    failed.setdefault(event.text, []).append(rank)
        if failed:
            return Verdict(
                "failed", "\n\n".join(f"{self._name(ranks)}: {text}" for text, ranks in failed.items())
            )
        inside = [rank for rank, its_events in enumerate(mine) if its_events and its_events[-1].kind != "end"]
        if inside:
            return Verdict("failed", f"{self._name(inside)} did not come out of it\n{log}")
        if not all(mine):
            started = any(rank for rank in events)
            return Verdict(
                "failed", "not run: the ranks had ended" if started else f"no rank came to a test\n{log}"
            )
        skipped = [event.text for its_events in mine for event in its_events if event.kind == "skipped"]
        return Verdict("skipped", skipped[0]) if len(skipped) == self.ranks else Verdict("passed")

    def _name(self, ranks: list[int]) -> str:
        return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} of {self.ranks}"


def _read(file: Path) -> list[Event]:
    return [Event(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
