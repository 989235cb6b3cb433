"""Scales of 8 bits in whole steps on a GPU: whose they are, what ranks agree on, what a checkpoint has of
them, and that the host does not wait for any of it. Beside the same steps on the host.

The update is left out, so that weights, and with them their maxima, are the same in both.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.emulator import Emulator, needs_emulator
from cuda.strict import StrictArray, StrictGpu
from layouts import GPT2, LIMIT, LLAMA, batch_of, mild_weights, tiny

from minitrain.arrays.device import HOST, Device
from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.checkpoint.state import Snapshot, read_state
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.config import Config, OptimConfig
from minitrain.ops.cuda.fp8 import DeviceScales
from minitrain.optim.cuda.judge import CudaJudge
from minitrain.step import Trainer, start_step

pytestmark = needs_emulator
WITHIN = 4 * 2.0**-3  # roundings to E5M2, of a gradient: as in tests/test_precision_in_layouts.py
MODELS = {"llama": LLAMA, "gpt2": GPT2}


def configured(name: str, **layout: int) -> Config:
    config = replace(tiny(MODELS[name], **layout), precision="fp8")
    return replace(config, optim=OptimConfig(name="sgd", lr=1e-2, weight_decay=0.0))


def trainer_of(config: Config, world: Comm, device: Device) -> Trainer:
    trainer = make_trainer(config, make_grid(world, config), mild_weights, device)
    optimizer = trainer.updater.optimizer
    return trainer._replace(updater=SimpleNamespace(update=lambda *_: None, optimizer=optimizer))


def maxima_after(config: Config, world: Comm, device: Device, n_steps: int) -> dict[str, Array]:
    """By matrix, as in a checkpoint: [3, HISTORY]."""
    trainer = trainer_of(config, world, device)
    for step in range(1, n_steps + 1):
        start_step(trainer, batch_of(config, step, trainer.grid.dp.rank), 0.0, step)
    return Snapshot.of(trainer.stage, copied=True).maxima


def assert_near(found: dict[str, Array], expected: dict[str, Array], n_steps: int) -> None:
    """Of the weights the same, most of which differ between matrices; of all else as near as rounding."""
    assert found.keys() == expected.keys()
    for name, history in found.items():
        assert (history[:, :n_steps] > 0).all() and (history[:, n_steps:] == 0).all(), name
        np.testing.assert_array_equal(history[1], expected[name][1], err_msg=name)
        np.testing.assert_allclose(history, expected[name], rtol=WITHIN, err_msg=name)
    assert len({history[1, 0] for history in found.values()}) > len(found) / 2


@pytest.mark.parametrize("name", MODELS)
def test_ranks_agree(name: str) -> None:
    """Each matrix of each layer has its own maxima, of all micro-batches and of all ranks of dp and tp."""
    config = configured(name, dp=2, tp=2)
    gpu, host = (
        run_threads(4, lambda world: maxima_after(config, world, device, 2), LIMIT)  # noqa: B023
        for device in (Emulator(), HOST)
    )
    assert_near(gpu[0], host[0], 2)
    assert_near(gpu[0], maxima_after(configured(name), SingleComm(), HOST, 2), 2)  # and no sums of maxima
    for other in gpu[1:]:
        for matrix, history in other.items():
            np.testing.assert_array_equal(history, gpu[0][matrix], err_msg=matrix)


@pytest.mark.parametrize("name", MODELS)
def test_the_host_does_not_wait_in_a_step(name: str) -> None:
    config, gpu = configured(name), StrictGpu()
    trainer = trainer_of(config, SingleComm(), gpu)
    trainer = trainer._replace(judge=CudaJudge(gpu, None, clip=1.0))
    for step in (1, 2):
        batch = batch_of(config, step, 0)
        ids_MN, targets_MN = gpu.to_device(batch.ids_MN), gpu.to_device(batch.targets_MN)
        start_step(trainer, batch._replace(ids_MN=ids_MN, targets_MN=targets_MN), 0.0, step)
    expected = maxima_after(config, SingleComm(), HOST, 2)
    assert_near(Snapshot.of(trainer.stage, copied=False).maxima, expected, 2)


def test_what_is_looked_at_between_steps_changes_nothing() -> None:
    config, gpu = configured("llama"), StrictGpu()
    for device in (gpu, HOST):
        stage = trainer_of(config, SingleComm(), device).stage
        stage.infer(device.to_device(batch_of(config, 1, 0).ids_MN[0]), config.model.seq_len)
        seen = stage.fp8.seen()
        assert isinstance(seen, StrictArray) == (device is gpu)
        assert len(seen) == 5 * 7 * 3 and not (seen.get() if device is gpu else seen).any()


class Stored:
    """A tensor of a file."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape, self.n_columns = values, values.shape, values.shape[1]

    def read(self, rows: Array, columns: slice) -> Array:
        return self.values[rows, columns]


@pytest.mark.parametrize("device", [StrictGpu(), HOST], ids=["gpu", "host"])
def test_maxima_of_a_checkpoint_are_read(device: Device) -> None:
    """Those of a run on the host by a GPU too. What the file has not stays."""
    config = configured("gpt2")
    saved = maxima_after(config, SingleComm(), HOST, 2)
    missing = "layers.1.attn.k"
    trainer = trainer_of(config, SingleComm(), device)
    read_state({f"fp8.{name}": Stored(x) for name, x in saved.items() if name != missing}, trainer, True)
    for name, history in Snapshot.of(trainer.stage, copied=True).maxima.items():
        np.testing.assert_array_equal(history, 0 if name == missing else saved[name], err_msg=name)
    if isinstance(trainer.stage.fp8, DeviceScales):
        scales = trainer.stage.fp8.scale_n.get()
        assert (scales == 0).sum() == 3, "the others are in use"
