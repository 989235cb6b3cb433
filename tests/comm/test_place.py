"""Which ranks are on one host, and which have one GPU."""

import socket
import threading
from collections.abc import Sequence

import pytest

from minitrain.comm.place import Place, place_on_host, require_own_devices
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.errors import ConfigError

LIMIT = 60.0


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the hosts that the ranks are on, to be filled in."""
    names: list[str] = []
    monkeypatch.setattr(socket, "gethostname", lambda: names[int(threading.current_thread().name.split()[1])])
    return names


def test_ranks_of_a_host_are_counted_in_the_order_of_the_world(hosts: list[str]) -> None:
    hosts += ["b", "a", "b", "b", "a"]
    places = run_threads(5, place_on_host, LIMIT)
    assert places == [Place(0, 3), Place(0, 2), Place(1, 3), Place(2, 3), Place(1, 2)]


def test_a_rank_alone() -> None:
    assert place_on_host(SingleComm()) == Place(0, 1)
    require_own_devices(SingleComm(), "GPU-0")


def errors(devices: Sequence[str]) -> list[str]:
    """What every rank is told."""

    def rank_main(world: ThreadComm) -> str:
        try:
            require_own_devices(world, devices[world.rank])
        except ConfigError as error:
            assert error.known_everywhere and error.exit_code == 2
            return str(error)
        return ""

    return run_threads(len(devices), rank_main, LIMIT)


def test_ranks_with_a_gpu_each_go_on(hosts: list[str]) -> None:
    hosts += ["a", "a", "b", "b"]
    assert errors(["0000:65", "0000:66", "0000:65", "0000:66"]) == [""] * 4


def test_ranks_that_share_a_gpu_are_told_which(hosts: list[str]) -> None:
    hosts += ["a", "a", "b", "b"]
    assert (
        errors(["GPU-7", "GPU-8", "GPU-9", "GPU-9"])
        == [
            "NCCL takes one rank for each GPU, but ranks 2-3 share GPU-9 on b; collectives nccl; "
            "start as many ranks on a host as it has GPUs, or choose --collectives mpi"
        ]
        * 4
    )


def test_of_many_shared_gpus_a_few_are_named(hosts: list[str]) -> None:
    hosts += ["a"] * 10
    told = errors([f"GPU-{i // 2}" for i in range(10)])[0]
    assert "ranks 0-1 share GPU-0 on a, ranks 2-3 share GPU-1 on a, ranks 4-5 share GPU-2 on a, " in told
    assert "and so on for 2 more" in told


def test_a_uuid_and_a_long_host_name_fit(hosts: list[str]) -> None:
    hosts += ["x" * 64, "x" * 64]
    uuid = "GPU-12345678-1234-1234-1234-12345678901"
    assert errors([uuid + "0", uuid + "1"]) == ["", ""]
    assert f"{uuid}0 on {'x' * 64};" in errors([uuid + "0"] * 2)[0]
