"""Scripts named bench_... compare like with like, and report it. How fast they find it is not asserted."""

import json
from pathlib import Path

import pytest
from launch import REPOSITORY, run_python

BENCH = REPOSITORY / "scripts" / "bench"
LOSSES = {"ours": [5.5, 5.4], "theirs": [5.5, 5.4]}


def test_table_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    file = tmp_path / "figures.json"
    job = run_python(BENCH / "compare.py", "--rounds", 1, "--json", file, timeout=900)
    assert job.returncode == 0, job.stderr
    figures = json.loads(file.read_text())
    assert figures["machine"]["cores"] >= 1
    results = figures["results"]
    found = [(r["problem"], r["side"], r["ranks"], r["threads"]) for r in results]
    each = [("ours", 1, 1), ("pytorch", 1, 1), ("ours", 2, 1), ("pytorch", 1, 2)]
    assert found == [(problem, *contender) for problem in ("2x128", "4x256") for contender in each]
    for r in results:
        assert 0 < r["seconds_min"] <= r["seconds"] <= r["seconds_max"]
        assert (r["ratio"] is not None) == (r["side"] == "ours")
        first = next(other for other in results if other["problem"] == r["problem"])
        assert r["losses"] == pytest.approx(first["losses"], abs=1e-4)
        assert len(set(r["losses"])) == 3, "three steps on different data"
    head, *rows = (line.split() for line in job.stdout.splitlines()[1:10])
    assert head[:4] == ["model", "who", "ranks", "threads"]
    assert [cells[0] for cells in rows] == [r["problem"] for r in results]
    assert {len(cells) for cells in rows} == {12}  # `min .. max` is three words


@pytest.mark.parametrize("loss", [5.4002, float("nan")])
@pytest.mark.parametrize("side", LOSSES)
def test_different_losses_are_not_compared(monkeypatch: pytest.MonkeyPatch, side: str, loss: float) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import compare

    compare.require_same_losses(LOSSES)
    with pytest.raises(compare.CannotRunError, match="same losses"):
        compare.require_same_losses(LOSSES | {side: [5.5, loss]})


def test_optimizer_table() -> None:
    pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    job = run_python(BENCH / "optimizer.py", "--rounds", 3, "--size", 100_003)
    assert job.returncode == 0, job.stderr
    title, _, *rows = job.stdout.splitlines()
    assert title.startswith("AdamW, 100,003 fp32 elements, 1 thread, NumPy ")
    assert [row[:20].strip() for row in rows] == ["minitrain", "PyTorch, fused", "PyTorch, not fused"]
    for row in rows:
        median, low, high, ratio = map(float, row[20:].split())
        assert 0 < low <= median <= high and ratio > 0


def test_optimizers_that_differ_are_not_compared() -> None:
    pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    program = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); sys.argv[1:] = ['--size', '9']\n"
        "import optimizer; right = optimizer.Hyper\n"
        "optimizer.Hyper = lambda lr, decay, t: right(2 * lr, decay, t)\n"
        "sys.exit(optimizer.main())"
    )
    job = run_python(program)
    assert job.returncode == 1 and "end at different weights" in job.stderr


@pytest.mark.long
@pytest.mark.parametrize("name, rows", [("checkpoint.py", 6), ("writing.py", 6)])
def test_what_checkpoints_cost(name: str, rows: int, tmp_path: Path) -> None:
    """Two rounds: the second begins where the first left something behind."""
    job = run_python(BENCH / name, "--rounds", 2, "--dir", tmp_path, ranks=4, timeout=900)
    assert job.returncode == 0, job.stderr
    assert len(job.stdout.splitlines()) == rows
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_what_watching_costs() -> None:
    job = run_python(BENCH / "check.py", "--rounds", 1, ranks=2, timeout=900)
    assert job.returncode == 0, job.stderr
    head, *rows = job.stdout.splitlines()
    assert head.split()[:2] == ["model", "layout"]
    cases = [f"{model} {axis} 2" for model in ("2x128", "4x256") for axis in ("dp", "tp", "pp")]
    assert [" ".join(row.split()[:3]) for row in rows] == cases
    for row in rows:
        counted, watched, checked, of_watching, of_checking, comparison = map(float, row.split()[3:])
        assert min(counted, watched, checked, comparison) > 0
        assert of_watching == pytest.approx(watched / counted, rel=0.02)
        assert of_checking == pytest.approx(checked / watched, rel=0.02)
