"""scripts/bench_step compares like with like, and reports it. How fast either side is, is not asserted."""

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
