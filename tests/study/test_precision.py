"""The study of precision on two steps of each run: its numbers are those of the runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from launch import run_minitrain

from minitrain.study.precision import AT_A_SMALL_RATE, PRECISIONS, fates, smooth

BYTES = {"fp32": "16", "fp16": "16", "bf16": "18", "bf16-pure": "8", "fp8": "18"}  # a parameter


def test_two_steps(tmp_path: Path) -> None:
    done = run_minitrain("study", "precision", "--steps", 2, "--out", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    data = json.loads((tmp_path / "p" / "runs.json").read_text())

    losses = data["precisions"]
    assert losses.keys() == PRECISIONS.keys() and data["small rate"].keys() == AT_A_SMALL_RATE.keys()
    for run in [*losses.values(), *data["small rate"].values()]:
        assert len(run) == 2 and run[0] == pytest.approx(np.log(256), rel=0.01)
    assert len({tuple(run) for run in losses.values()}) == len(losses), "no two types give the same"
    scale = data["loss scale"]
    assert scale == {"scale": [2.0**24, 2.0**23], "skipped": [True, True]}

    paragraphs = done.stdout.split("\n\n")
    rows = [re.split("  +", line) for line in paragraphs[1].splitlines()[1:]]
    assert [name for name, *_ in rows] == list(losses)
    for name, loss, difference, n_bytes in rows:
        mean, fp32 = np.mean(losses[name]), np.mean(losses["fp32"])
        assert float(loss) == pytest.approx(mean, abs=1e-4)
        assert float(difference.rstrip("%")) == pytest.approx(100 * (mean / fp32 - 1), abs=0.006)
        assert n_bytes == BYTES[name.partition(",")[0]]

    gradients = data["gradients"]
    assert [fate["scale"] for fate in gradients["fates"]] == [1.0, 65536.0]
    share = np.array(gradients["counts"]) / sum(gradients["counts"])
    for fate in gradients["fates"]:
        exponents = np.array(gradients["exponents"]) + np.log2(fate["scale"])
        assert fate["lost"] == pytest.approx(share[exponents < -25].sum(), abs=1e-4)
        subnormal = share[(exponents >= -25) & (exponents < -14)].sum()
        assert fate["subnormal"] == pytest.approx(subnormal, abs=1e-4)
    assert gradients["fates"][0]["subnormal"] > 0.1 > gradients["fates"][1]["subnormal"]

    files = {path.name for path in (tmp_path / "p").iterdir()}
    names = ("losses", "small-rate", "gradients", "loss-scale")
    assert files == {"runs.json"} | {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(f"p/{file}" in paragraphs[-1] for file in files)


def test_fates_are_those_of_astype() -> None:
    size = np.array([2.0**-30, 2.0**-25, 2.0**-25 * 1.01, 2.0**-14 * 0.99, 2.0**-14, 65519, 65520, 1e6])
    with np.errstate(over="ignore", under="ignore"):
        halves = size.astype(np.float16)
    assert fates(size) == {"lost": 2 / 8, "subnormal": 2 / 8, "too large": 2 / 8}
    assert np.mean(halves == 0) == np.mean(np.isinf(halves)) == 2 / 8


def test_smoothing_is_the_mean_of_the_last_steps() -> None:
    losses = [float(n) for n in range(25)]
    assert smooth(losses).tolist() == pytest.approx([np.mean(losses[n : n + 20]) for n in range(6)])
    assert smooth([1.0, 3.0]).tolist() == [2.0]
