"""The banner says what runs, and which rank holds what."""

from typing import Any

import pytest

from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config, DataConfig, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from minitrain.model.spec import block_specs, model_specs
from minitrain.observe.banner import banner, place_of
from minitrain.resolve import resolve


def text(ranks: int, notices: tuple[str, ...] = (), **parts: Any) -> str:
    return banner(resolve(Config(**parts), {}, ranks).config, list(notices))


def rows(banner: str) -> list[list[str]]:
    lines = banner.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["rank"])
    return [line.split() for line in lines[start + 1 :] if line]


def test_a_run_on_eight_ranks() -> None:
    shown = text(8, notices=("look at this",), train=TrainConfig(global_batch=8), optim=OptimConfig(lr=0.5))
    model = "llama, 2 layers x 128, 4 heads, ffn 352, vocab 256: 467,584 parameters"
    layout = "8 ranks = dp 2 x pp 2 x tp 2, 1f1b"
    batch = "8 sequences of 64 = 512 tokens a step"
    for part in (model, layout, batch, "King James Bible", "adamw, lr 0.5", "note       look at this"):
        assert part in shown
    assert [len(row) for row in rows(shown)] == [9] * 8
    assert max(map(len, shown.splitlines())) <= 100 and shown.isascii()


def test_the_table_of_the_default_run() -> None:
    assert rows(text(4, parallel=ParallelConfig(pp=2, tp=2))) == [
        "0 0 0 0 0 0-1 0-175 0-127 -".split(),
        "1 0 0 1 0 2-3 176-351 128-255 -".split(),
        "2 0 1 0 1 0-1 0-175 - 0-127".split(),
        "3 0 1 1 1 2-3 176-351 - 128-255".split(),
    ]


def test_parameters_are_counted_once_each() -> None:
    for model in (ModelConfig(), ModelConfig(arch="gpt2"), ModelConfig(tied=True, kv_heads=2)):
        config = resolve(Config(model=model), {}, 1).config
        assert f": {sum(spec.size for spec in model_specs(config.model)):,} parameters" in banner(config, [])


def test_what_differs_is_said() -> None:
    assert "ZeRO-2 over 2 of dp 4" in text(4, parallel=ParallelConfig(dp=4, zero=2, shard=2))
    assert "ZeRO-1 over all of dp" in text(4, parallel=ParallelConfig(dp=4, zero=1))
    assert "sequence parallel" in text(2, parallel=ParallelConfig(tp=2, sequence=True))
    assert "gpipe" in text(2, parallel=ParallelConfig(pp=2, schedule="gpipe"))
    assert "in file order" in text(1, data=DataConfig(shuffle=False))
    assert "nothing held out" in text(1, data=DataConfig(holdout=0))
    assert "x.txt" in text(1, data=DataConfig(path="x.txt"))
    assert "no clipping" in text(1, optim=OptimConfig(clip=0))
    assert " 65,536 sequences of 4,096 =" in text(
        1, train=TrainConfig(global_batch=65536), model=ModelConfig(seq_len=4096)
    )
    assert "4 heads (2 kv)" in text(1, model=ModelConfig(kv_heads=2))


def test_one_rank_needs_no_table_and_many_are_cut_short() -> None:
    assert "rank  dp" not in text(1)
    many = rows(text(64, parallel=ParallelConfig(tp=4, pp=2)))
    assert len(many) == 16 and ["..."] in many
    assert [row[0] for row in many] == [*map(str, range(12)), "...", "61", "62", "63"]
    assert rows(text(10**12, parallel=ParallelConfig(dp=10**12)))[-1][0] == str(10**12 - 1)


@pytest.mark.parametrize("dp, pp, tp, shard", [(2, 2, 2, 2), (4, 1, 2, 2), (1, 2, 4, 1), (2, 3, 1, 1)])
def test_places_are_those_of_the_grid(dp: int, pp: int, tp: int, shard: int) -> None:
    parallel = ParallelConfig(dp=dp, pp=pp, tp=tp, zero=1, shard=shard)
    model = ModelConfig(layers=5, kv_heads=2, ffn=50, vocab=37)
    config = resolve(Config(model=model, parallel=parallel), {}, dp * pp * tp).config

    def coordinates(world: Comm) -> tuple[int, int, int]:
        grid = make_grid(world, config)
        return grid.dp.rank, grid.pp.rank, grid.tp.rank

    for rank, coords in enumerate(run_threads(dp * pp * tp, coordinates)):
        place = place_of(config, rank)
        assert (place.dp, place.pp, place.tp) == coords


def test_pieces_are_those_of_the_table_of_parameters() -> None:
    config = resolve(Config(model=ModelConfig(ffn=50, vocab=37), parallel=ParallelConfig(tp=4)), {}, 4).config
    specs = {spec.name: spec for spec in model_specs(config.model)} | {
        s.name: s for s in block_specs(config.model, 0)
    }
    for rank in range(4):
        place = place_of(config, rank)
        for pieces, name, each in ((place.vocab, "embedding", 1), (place.ffn, "layers.0.mlp.up", 1),
                                   (place.heads, "layers.0.attn.q", 32)):  # fmt: skip
            rows_held = specs[name].tp_slice(rank, 4)[0]
            assert (pieces.start * each, pieces.stop * each) == (rows_held.start, rows_held.stop)


def test_stages_share_the_layers_between_them() -> None:
    config = resolve(Config(model=ModelConfig(layers=5), parallel=ParallelConfig(pp=3)), {}, 3).config
    assert [list(place_of(config, rank).layers) for rank in range(3)] == [[0, 1], [2, 3], [4]]
