"""Runs what needs all the counts last, and reports them."""

import pytest
from cuda import counts
from cuda.card import Card
from cuda.devices import Wanted, numpy_gpu, why_not
from cuda.emulator import Emulator
from together import LAST_LINES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: "whole_folder" in getattr(item, "fixturenames", ())
    )  # keeps the order of others


def pytest_configure(config: pytest.Config) -> None:
    Wanted.gpu = config.getoption("--gpu")


@pytest.fixture
def gpu() -> Emulator | Card:
    """One whose arrays are NumPy's."""
    if reason := why_not():
        pytest.skip(reason)
    return numpy_gpu()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts.summary():
        terminalreporter.write_line(counts.summary())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the one that has the terminal."""
    if hasattr(session.config, "workeroutput") and counts.summary():
        session.config.workeroutput[LAST_LINES] = [counts.summary()]


@pytest.fixture
def whole_folder(request: pytest.FixtureRequest) -> None:
    """Skips unless every test file of this folder took part, whole."""
    folder = request.path.parent
    selected = {item.path for item in request.session.items}
    narrowed = request.config.option.keyword or any("::" in argument for argument in request.config.args)
    if narrowed or not set(folder.glob("test_*.py")) <= selected:
        pytest.skip("counts what all tests of tests/cuda did")
