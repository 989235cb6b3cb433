"""Where ranks are: on which host, and on which device of it. Ranks tell each other; no launcher is asked."""

import socket
from typing import NamedTuple

from minitrain.comm.agree import gather_texts
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import grouped, name_ranks
from minitrain.errors import ConfigError, Problem

MOST = 3  # shared GPUs that are told of


class Place(NamedTuple):
    """Of a rank among the ranks of its host."""

    rank: int
    size: int


def place_on_host(world: Comm) -> Place:
    """This rank's. Collective over `world`."""
    hosts = gather_texts(world, socket.gethostname())
    me = world.members[world.rank]
    here = [rank for rank, host in sorted(hosts.items()) if host == hosts[me]]
    return Place(here.index(me), len(here))


def require_own_devices(world: Comm, device_id: str) -> None:
    """Returns if no two ranks have the same GPU, else raises the same ConfigError on every rank: NCCL would
    fail with words that do not name it. `device_id`: its UUID or PCI bus id, at most 48 letters. Collective.
    """
    devices = gather_texts(world, f"{device_id} on {socket.gethostname()}")
    shared = [f"{name_ranks(ranks)} share {device}" for ranks, device in grouped(devices) if len(ranks) > 1]
    if not shared:
        return
    what = f"NCCL takes one rank for each GPU, but {', '.join(shared[:MOST])}"
    if len(shared) > MOST:
        what += f", and so on for {len(shared) - MOST} more"
    remedy = "start as many ranks on a host as it has GPUs, or choose --collectives mpi"
    error = ConfigError([Problem(what, "collectives nccl", remedy)])
    error.known_everywhere = True
    raise error
