"""How several processes share the suite: `pytest -n 2`, by pytest-xdist, which hands out units of tests.

The tests of a unit run on one process, in their order. A file is a unit, for its tests share what fixtures
make. Tests of some files share little and are units of one: they come last, and go to whoever has nothing to
do.
"""

import re
from typing import Any

import pytest

APART = ("tests/test_language_model.py", "tests/test_planted_bugs.py")
COUNTED = "tests/cuda/"  # counts as a whole what it ran (cuda/counts.py)
LAST_LINES = "minitrain_last_lines"  # what a process passes on of `workeroutput`

_RANKS = re.compile(r" \(\d+ ranks\)$")  # the tests of one mpirun (mpi_subrun.py)


def unit(test: str) -> str:
    """Of a test with a name like `tests/ops/test_norm.py::test_norm[3]`."""
    if ranks := _RANKS.search(test):
        return ranks[0]
    if test.startswith(APART):
        return test
    return COUNTED if test.startswith(COUNTED) else test.partition("::")[0]


class Together:
    """The plugin. Its hooks are called in the process that hands out, if there is one."""

    def __init__(self) -> None:
        self.last_lines: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        class Units(LoadScopeScheduling):  # those with most tests first
            def _split_scope(self, nodeid: str) -> str:
                return unit(nodeid)

        return Units(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})  # none of a process that has crashed
        self.last_lines += output.get(LAST_LINES, [])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.last_lines:
            terminalreporter.write_line(line)
