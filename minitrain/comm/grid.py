"""Where this rank lives: the world as a grid, and one communicator for every axis of it.

The world is `replica x shard x pp x tp`, tp varying fastest, so that the ranks that talk most are neighbours:

    world     all ranks
    replica   copies of everything: gradients are all-reduced over it
    shard     ZeRO: parameters, gradients or optimizer state are cut over it; under run.exact these two add up
              in the order of a binary tree (tree.py)
    dp        replica x shard: the ranks that see different data
    pp        pipeline stages
    tp        tensor parallelism within a layer
    kv        the tp ranks that hold copies of the same kv heads (where those are fewer than tp)
    tied      the first and the last stage, when both hold the tied embedding matrix
"""

from typing import NamedTuple

from minitrain.arrays.device import HOST, Device
from minitrain.comm.interface import Comm
from minitrain.comm.tree import tree_ordered
from minitrain.config import Config


class Grid(NamedTuple):
    """This rank's communicators. An axis of extent 1 has a communicator that does nothing."""

    world: Comm
    replica: Comm
    shard: Comm
    dp: Comm
    pp: Comm
    tp: Comm
    kv: Comm
    tied: Comm


def make_grid(world: Comm, config: Config, device: Device = HOST) -> Grid:
    """Cuts `world` into the axes of the (resolved) configuration, for gradients in the memory of `device`.
    Collective over `world`.
    """
    parallel, model = config.parallel, config.model
    assert parallel.dp and parallel.tp and parallel.pp and parallel.shard and model.kv_heads
    copies = max(1, parallel.tp // model.kv_heads)  # neighbours in tp hold copies of the same kv head
    dims = (parallel.dp // parallel.shard, parallel.shard, parallel.pp, parallel.tp // copies, copies)
    cart = world.cart(dims)
    axes = ("replica", "shard", "pp", "tp", "kv")

    def along(name: str, *kept: str) -> Comm:
        return cart.sub([axis in kept for axis in axes], name)

    def of_gradients(name: str) -> Comm:
        return tree_ordered(along(name, name), device) if config.run.exact else along(name, name)

    pp = along("pp", "pp")
    at_an_end = model.tied and pp.rank in (0, pp.size - 1)
    return Grid(
        world=world,
        replica=of_gradients("replica"),
        shard=of_gradients("shard"),
        dp=along("dp", "replica", "shard"),
        pp=pp,
        tp=along("tp", "tp", "kv"),
        kv=along("kv", "kv"),
        tied=pp.split(0 if at_an_end else None, "tied"),
    )
