"""Machines by name: what a card computes, holds and sends. A TOML file may add others.

Peaks are those of `observe/flops.py`. The rest is from NVIDIA's data sheets of the cards and of the DGX
system with eight of them: memory and its speed, NVLink in one direction (half of what the sheet adds up), and
one adapter of InfiniBand a card. Nobody publishes latencies, nor the share of its peak that a program of
matrix products reaches: `link_us`, `network_us` and `efficiency` are assumptions, alike for all.

    [my-machine]             # in a file: a table for each machine
    like = "h100"            # what the others of its fields are
    network_gb_s = 12.5
    source = "two cards an adapter"
"""

import tomllib
from dataclasses import dataclass, fields, replace
from typing import Any

from minitrain.errors import ConfigError, Problem
from minitrain.fields import nearest
from minitrain.observe.flops import OF_PRECISION, PEAKS, Peak
from minitrain.small_file import read_small

LARGEST = 32 << 10  # bytes of a file


@dataclass(frozen=True)
class Machine:
    """Nodes of cards. GB and GB/s are 10^9 bytes."""

    half: float  # TFLOP/s of products in fp16 and bf16
    fp32: float
    fp64: float | None  # None: it has none, or nobody says
    fp8: float | None
    memory_gb: float
    memory_gb_s: float
    cards: int  # of a node
    link_gb_s: float  # that a card sends to others of its node
    network_gb_s: float  # and to other nodes
    link_us: float = 5.0  # from the start of a message to its arrival
    network_us: float = 10.0
    efficiency: float = 0.6  # share of the peak at which products run
    source: str = ""

    def peak(self, precision: str) -> float | None:
        """FLOP/s of products in a `precision` of the configuration."""
        tera: float | None = getattr(self, OF_PRECISION[precision])
        return None if tera is None else tera * 1e12


def _dgx(
    card: str, memory_gb: float, memory_gb_s: float, link_gb_s: float, network_gb_s: float, source: str
) -> Machine:
    peak: Peak = PEAKS[card]
    return Machine(
        half=peak.half, fp32=peak.fp32, fp64=peak.fp64, fp8=peak.fp8, memory_gb=memory_gb,
        memory_gb_s=memory_gb_s, cards=8, link_gb_s=link_gb_s, network_gb_s=network_gb_s, source=source,
    )  # fmt: skip


A100 = "NVIDIA A100 data sheet 2021; DGX A100: NVLink 600 GB/s, eight adapters of 200 Gb/s"
H100 = "NVIDIA H100 data sheet; DGX H100: NVLink 900 GB/s, eight adapters of 400 Gb/s"
H200 = "NVIDIA H200 data sheet; DGX H200: NVLink 900 GB/s, eight adapters of 400 Gb/s"
B200 = "NVIDIA DGX B200 data sheet: 1,440 GB and 64 TB/s of eight, NVLink 1.8 TB/s, adapters of 400 Gb/s"
MACHINES = {
    "a100-40gb": _dgx("NVIDIA A100-SXM4-40GB", 40, 1555, 300, 25, A100),
    "a100-80gb": _dgx("NVIDIA A100-SXM4-80GB", 80, 2039, 300, 25, A100),
    "h100": _dgx("NVIDIA H100 80GB HBM3", 80, 3350, 450, 50, H100),
    "h200": _dgx("NVIDIA H200", 141, 4800, 450, 50, H200),
    "b200": _dgx("NVIDIA B200", 180, 8000, 900, 50, B200),
}


def find_machine(name: str, file: str | None) -> Machine:
    """Of the table, or of a file. Raises ConfigError."""
    known = MACHINES if file is None else MACHINES | _read(file)
    if name not in known:
        meant = nearest(name, known)
        remedy = f"there are {', '.join(known)}" + (f"; the nearest is {meant}" if meant else "")
        raise ConfigError([Problem(f"no machine is called '{name}'", "--hardware", remedy)])
    return known[name]


def _read(file: str) -> dict[str, Machine]:
    try:
        tables = tomllib.loads(read_small(file, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problem = Problem(f"cannot read {file}: {reason}", "--hardware-file", "name a TOML file of machines")
        raise ConfigError([problem]) from error
    machines: dict[str, Machine] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError([Problem(f"{name} is no table", file, f"write [{name}], then its fields")])
        machines[name] = _machine(name, dict(table), MACHINES | machines, file)
    return machines


def _machine(name: str, table: dict[str, Any], known: dict[str, Machine], file: str) -> Machine:
    like = table.pop("like", None)
    if like is not None and not (isinstance(like, str) and like in known):
        remedy = f"like one of {', '.join(known)}, or of those above it"
        raise ConfigError([Problem(f"{name} is like {like}, which is unknown", file, remedy)])
    names = [field.name for field in fields(Machine)]
    problems = []
    for key, value in table.items():
        if key not in names:
            meant = nearest(key, names)
            remedy = f"the nearest known is {meant}" if meant else f"known are {', '.join(names)}"
            problems.append(Problem(f"unknown key {name}.{key}", file, remedy))
        elif key == "source":
            if not isinstance(value, str):
                problems.append(Problem(f"{name}.source is no text", file, "say where its numbers are from"))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
            problems.append(Problem(f"{name}.{key} is {value}", file, "give a number from 1e-9 to 1e9"))
        elif (key == "cards" and not isinstance(value, int)) or (key == "efficiency" and value > 1):
            remedy = "give a whole number" if key == "cards" else "give a share, up to 1"
            problems.append(Problem(f"{name}.{key} is {value}", file, remedy))
    optional = {"link_us", "network_us", "efficiency", "source", "fp64", "fp8"}
    missing = [key for key in names if key not in table and key not in optional and like is None]
    if missing:
        problems.append(
            Problem(f"{name} lacks {', '.join(missing)}", file, "give them, or say what it is like")
        )
    if problems:
        raise ConfigError(problems)
    if like is not None:
        return replace(known[like], **table)
    return Machine(**{"fp64": None, "fp8": None, **table})
