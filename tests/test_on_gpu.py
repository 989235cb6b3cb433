"""Whole runs on a GPU that is none, whose arrays refuse what CuPy's would (cuda/strict.py), beside the same
runs on the host: from the command line to the last file.
"""

import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comm.fake_device import Address
from comm.fake_nccl import FakeNccl
from cuda.emulator import needs_emulator
from cuda.strict import StrictArray, StrictGpu
from safetensors.numpy import load_file

from minitrain import backend
from minitrain.arrays.owners import owners
from minitrain.cli import main
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.config_text import from_json
from minitrain.launched import LAUNCHERS
from minitrain.observe.recorder import AnyRecorder, Recorder, SilentRecorder
from minitrain.prepare import prepare
from minitrain.train import train as run_training

pytestmark = needs_emulator

SMALL = (
    "--precision fp64 --model.layers 2 --model.width 32 --model.seq_len 16 --model.kv_heads 2 "
    "--data.holdout 0.0005 --train.steps 4 --train.eval_every 2 --train.eval_sequences 8 "
    "--train.global_batch 8 --train.micro_batch 2 --run.sample_tokens 4 --run.compare_every 2 "
    "--run.save_every 2 --run.progress none"
)
LIMIT = 120.0
H100 = "NVIDIA H100 80GB HBM3"
CLOSE = 1e-11  # of fp64, after a few steps: sums have other orders


class Mark:
    def passed(self) -> bool:
        return True


class Gpu(StrictGpu):
    """As `CupyDevice` is made."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.stream, self.its_gemm = index, Address(7), self.gemm
        self.gemm = None

    def mark(self) -> Mark:
        return Mark()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four, all of which every rank of this process sees."""
    module: Any = ModuleType("minitrain.arrays.cupy_device")
    module.CupyDevice, module.n_devices = Gpu, lambda: 4
    module.describe = lambda index: SimpleNamespace(name=H100, place=f"0000:{index}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backend, "look_for_gpu", lambda: "")
    monkeypatch.setattr("minitrain.ops.cuda.cublaslt.CublasLt.of_cupy", lambda: StrictGpu().gemm)
    for size, rank, _ in LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)


def train(run: Path, arguments: str) -> Path:
    assert main([*f"{SMALL} {arguments} --run.dir".split(), str(run)]) == 0
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, theirs: Path, within: float = CLOSE) -> None:
    """Losses, norms, validations, the sample, the weights and all of the last checkpoint."""
    for mine, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert mine.keys() == other.keys() and mine["step"] == other["step"]
        for name in {"loss", "grad_norm", "eval_loss"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=within), name
    assert (ours / "samples.txt").read_text() == (theirs / "samples.txt").read_text()
    files = ("hf/model.safetensors", "checkpoints/step-00000004/state.safetensors")
    for name in files:
        mine, other = load_file(ours / name), load_file(theirs / name)
        assert mine.keys() == other.keys()
        for tensor in mine:
            scale = np.abs(other[tensor]).max() or 1.0
            assert np.abs(mine[tensor] - other[tensor]).max() <= within * scale, tensor


def test_a_run_and_what_it_leaves(gpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = train(tmp_path / "gpu", "--backend cupy")
    assert f"  gpus       1 {H100}, gemm cublaslt\n" in capsys.readouterr().out
    theirs = train(tmp_path / "host", "--backend numpy")
    assert_same_run(ours, theirs)
    mfus = [line["mfu"] for line in metrics(ours) if "loss" in line]
    assert len(mfus) == 4 and all(0 < mfu < 1 for mfu in mfus)
    assert all(line["mfu"] is None for line in metrics(theirs) if "loss" in line)
    memory, on_host = metrics(ours)[0]["memory_bytes"], metrics(theirs)[0]["memory_bytes"]
    for kind in ("parameters", "gradients", "master", "moments"):
        assert memory[kind] == on_host[kind], kind
    assert memory["activations"] > 0


LAYOUTS = {
    "dp, ZeRO 2": "--parallel.dp 2 --parallel.zero 2",
    "replicas": "--parallel.dp 2",
    "dp, ZeRO 3, tp": "--parallel.dp 2 --parallel.zero 3 --parallel.tp 2 --parallel.sequence true",
    "pp": "--parallel.pp 2 --run.check true",
    "exact, ZeRO 2": "--parallel.dp 2 --parallel.zero 2 --run.exact true",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ranks_as_threads_that_share_gpus(gpus: None, layout: str, tmp_path: Path) -> None:
    ours = train(tmp_path / "gpu", f"--backend cupy --collectives threads {layout}")
    assert_same_run(ours, train(tmp_path / "host", f"--backend numpy --collectives threads {layout}"))


@pytest.mark.parametrize("layout", [
    "--parallel.dp 2 --parallel.pp 2", "--parallel.dp 2 --parallel.tp 2 --parallel.zero 3",
    "--parallel.pp 4 --model.layers 4 --run.check true", "--parallel.dp 4 --run.exact true",
])  # fmt: skip
def test_ranks_over_nccl(
    gpus: None,
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Threads stand in for processes. Nobody waits for ever, in whatever a run does."""
    fake = FakeNccl(LIMIT)
    monkeypatch.setattr("minitrain.comm.nccl.load", lambda: fake)
    ours = tmp_path / "nccl"
    job = prepare([*f"{SMALL} {layout} --collectives nccl --run.dir".split(), str(ours)], 4)
    config = from_json(job.config)

    def rank_main(world: ThreadComm) -> None:
        recorder: AnyRecorder = Recorder(job.notices) if world.rank == 0 else SilentRecorder()
        run_training(config, world, recorder)

    run_threads(4, rank_main, LIMIT)
    assert f"  gpus       4 ranks on 4 {H100}, collectives nccl, gemm cublaslt\n" in capsys.readouterr().out
    assert fake.communicators and not any(c._alive for c in fake.communicators)
    assert_same_run(ours, train(tmp_path / "host", f"--backend numpy --collectives threads {layout}"))


def test_going_on_from_a_checkpoint_on_either_side(gpus: None, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "--backend cupy")
    middle = whole / "checkpoints" / "step-00000002"
    for name, arguments in {
        "gpu": "--backend cupy",
        "host": "--backend numpy",
        "ranks": "--backend cupy --collectives threads --parallel.tp 2",
    }.items():
        rest = train(tmp_path / name, f"{arguments} --run.resume {middle}")
        losses = [line["loss"] for line in metrics(rest) if "loss" in line]
        expected = [line["loss"] for line in metrics(whole) if "loss" in line][2:]
        assert losses == (expected if name == "gpu" else pytest.approx(expected, rel=CLOSE)), name


@pytest.mark.parametrize("optimizer", ["adam8bit", "adafactor", "muon", "sophia-g"])
def test_what_optimizers_remember_is_saved_and_read(gpus: None, optimizer: str, tmp_path: Path) -> None:
    chosen = f"--backend cupy --optim.name {optimizer}"
    whole = train(tmp_path / "whole", chosen)
    middle = whole / "checkpoints" / "step-00000002"
    rest = train(tmp_path / "rest", f"{chosen} --run.resume {middle}")
    assert metrics(rest)[-2]["loss"] == metrics(whole)[-2]["loss"], "the same bits"
    on_host = train(tmp_path / "host", f"--backend numpy --optim.name {optimizer}")
    assert_same_run(whole, on_host, within=1e-3 if optimizer == "adam8bit" else 1e-9)


def test_a_background_checkpoint_is_of_its_step(
    gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread comes to write when the GPU has changed all of it."""
    from minitrain.checkpoint.saving import Saver

    written, write = threading.Event(), Saver._write

    def late(self: Saver, *args: Any) -> None:
        if threading.current_thread().name == "checkpoint":
            written.wait(2)
        write(self, *args)

    monkeypatch.setattr(Saver, "_write", late)
    arguments = "--backend cupy --run.keep 9"
    ours = train(tmp_path / "background", f"{arguments} --run.background true")
    theirs = train(tmp_path / "foreground", arguments)
    for name in ("model", "state"):
        file = f"checkpoints/step-00000002/{name}.safetensors"
        mine, other = load_file(ours / file), load_file(theirs / file)
        assert all(np.array_equal(mine[tensor], other[tensor]) for tensor in other)


def test_views_of_a_gpus_memory_count_once(gpus: None) -> None:
    whole = StrictArray(np.zeros((4, 8)))
    assert sorted(
        owners((whole[0], [whole[1:], None, 3.0], whole.reshape(-1), np.zeros(3)[1:])).values()
    ) == [24, 256]
