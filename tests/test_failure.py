"""The order of what happens when one rank of several fails."""

import sys
import time

import pytest

from minitrain.comm.single import SingleComm
from minitrain.errors import ConfigError, Problem
from minitrain.failure import GRACE, fail


class TwoRanks(SingleComm):
    """Rank 0 of two; remembers how the job was ended, and when."""

    size = 2

    def abort(self, exit_code: int) -> None:
        self.ended = exit_code, time.monotonic()


class Listener:
    """A standard error that remembers when it was written to."""

    def __init__(self) -> None:
        self.text, self.last = "", 0.0

    def write(self, text: str) -> None:
        self.text, self.last = self.text + text, time.monotonic()

    def flush(self) -> None:
        pass


def test_the_launcher_has_time_to_pass_the_line_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its own words about the end may come first, and our line does not begin a line."""
    world, listener = TwoRanks(), Listener()
    monkeypatch.setattr(sys, "stderr", listener)
    fail(ConfigError([Problem("a", "b", "c")]), world, debug=False)
    code, moment = world.ended
    assert code == 2 and listener.text == "minitrain: error: rank 0: a; b; c\n"
    assert moment - listener.last >= GRACE
