"""scripts/gpu_check, as far as it goes without a GPU."""

import sys
from pathlib import Path

import pytest
from launch import REPOSITORY, run

sys.path.insert(0, str(REPOSITORY / "scripts" / "gpu"))

from check import Outcome, outcomes_of, table
from runs import FailedError, Runs, distance

REPORT = """<testsuites><testsuite>
<testcase classname="tests.cuda.test_norm" name="test_a"/>
<testcase classname="tests.cuda.test_norm" name="test_b"><skipped message="large"/></testcase>
<testcase classname="tests.cuda.test_loss" name="test_c[1]"><failure message="off"/></testcase>
<testcase classname="tests.cuda.test_loss" name="test_d"><error message="broken"/></testcase>
<testcase classname="tests.cuda.test_loss" name="test_e"/>
</testsuite></testsuites>"""


def test_outcomes_of_tests(tmp_path: Path) -> None:
    (tmp_path / "kernels.xml").write_text(REPORT)
    assert outcomes_of(tmp_path / "kernels.xml") == [
        Outcome("loss", "2 of 3 failed: test_c[1], test_d"),
        Outcome("norm", "", "1 passed, 1 skipped"),
    ]
    (tmp_path / "none.xml").write_text("<testsuites/>")
    for name in ("none.xml", "missing.xml"):
        (outcome,) = outcomes_of(tmp_path / name)
        assert outcome.problem


def test_table() -> None:
    assert table([Outcome("a", "", "3 passed"), Outcome("long", "no\nmore")]) == [
        "a     ok      3 passed",
        "long  FAILED  no",
    ]


def test_losses_that_differ_are_found() -> None:
    assert distance([1.0, 2.0], [1.0, 2.0 + 1e-12], 1e-10) == "losses within 5e-13"
    for ours in ([1.0, 2.1], [1.0], [1.0, float("nan")]):
        with pytest.raises(FailedError):
            distance(ours, [1.0, 2.0], 1e-2)


def test_runs(tmp_path: Path) -> None:
    """The CPU in the place of the GPU."""
    runs = Runs(tmp_path, backend="numpy")
    assert runs.precision("bf16") == "losses within 0"
    assert runs.resume() == "the same bits"
    assert runs.resume_elsewhere() == "losses within 0"
    with pytest.raises(FailedError, match="exit code 2: minitrain: error"):
        runs.layout({"parallel.tp": 3})


def test_what_there_is_no_time_for_has_failed(tmp_path: Path) -> None:
    outcomes = list(Runs(tmp_path, backend="numpy").all(limit=-1))
    assert len(outcomes) > 12 and all(outcome.problem.startswith("not run") for outcome in outcomes)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    command = [sys.executable, str(REPOSITORY / "scripts/gpu/check.py"), "--out", str(tmp_path / "out")]
    done = run(command, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("scripts/gpu_check: no GPU can be used: cudaError")
