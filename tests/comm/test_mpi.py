"""The MPI communicator, and training over it: layouts under real mpirun against one process."""

from dataclasses import replace

import pytest
from contract import check_contract
from layouts import (
    GPT2,
    LLAMA,
    LLAMA_TIED,
    Outcome,
    assemble,
    assert_same,
    layouts,
    rank_run,
    run_layout,
    tiny,
)
from pairwise import pairwise

from minitrain.comm.checked import checked
from minitrain.config import Config

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
LAYOUTS = pairwise(
    [
        {"model": name, **layout}
        for name, model in MODELS.items()
        for size in (2, 4, 8)
        for layout in layouts(range(size, size + 1), model)
    ]
)


@pytest.mark.mpi(min_size=2)
def test_contract() -> None:
    from minitrain.comm.mpi import world

    check_contract(world())


def run_over_mpi(config: Config, synchronous_sends: bool = False) -> Outcome | None:
    """What all ranks together computed, on rank 0; None elsewhere."""
    from mpi4py import MPI

    from minitrain.comm.mpi import world

    mine = rank_run(checked(world(synchronous_sends)), config, 3, compared=True)
    everyone = MPI.COMM_WORLD.gather(mine)
    if everyone is None:
        return None
    for losses, norms, *_ in everyone:
        assert (losses, norms) == mine[:2], "loss and norm are one number on every rank"
    grads = [assemble(config, [rank[2][step] for rank in everyone]) for step in range(3)]
    return Outcome(*mine[:2], grads, assemble(config, [rank[3] for rank in everyone]))


def check(config: Config, synchronous_sends: bool = False) -> None:
    outcome = run_over_mpi(config, synchronous_sends)
    if outcome is not None:
        serial = replace(config, parallel=tiny().parallel)
        assert_same(outcome, run_layout(serial))


@pytest.mark.mpi(min_size=2)
def test_layouts_equal_one_process() -> None:
    """Of a sample that covers all pairs, those for as many ranks as there are."""
    from mpi4py import MPI

    of_this_size = [x for x in LAYOUTS if x["dp"] * x["tp"] * x["pp"] == MPI.COMM_WORLD.size]
    if not of_this_size:
        pytest.skip("the layouts are for 2, 4 and 8 ranks")
    for layout in of_this_size:
        print(layout)  # shown if it fails
        fields = {name: value for name, value in layout.items() if name != "model"}
        check(tiny(MODELS[layout["model"]], **fields))


def test_the_sample_is_a_dozen_or_more() -> None:
    assert len(LAYOUTS) >= 12


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("synchronous", [False, True])
def test_pipeline_with_large_messages(schedule: str, synchronous: bool) -> None:
    """Above the eager limit of every transport (64 KB), and with sends that wait for their receive
    (MPI_Ssend).
    """
    from mpi4py import MPI

    model = replace(LLAMA, seq_len=128, layers=8)
    size = MPI.COMM_WORLD.size
    config = tiny(model, dp=1, pp=size, schedule=schedule)
    train = replace(config.train, micro_batch=4, global_batch=16)
    assert 4 * 128 * model.width * 8 > 65536
    check(replace(config, train=train), synchronous)
