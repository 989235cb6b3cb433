"""Do all ranks run the same program? Machines that were installed at different times may not."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from minitrain.comm.agree import alike, fingerprint, gather_texts
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import grouped, name_ranks, who_says
from minitrain.errors import ConfigError, MinitrainError, Problem

PACKAGE = Path(__file__).parents[1]


def software() -> dict[str, str]:
    """What must be the same on every rank."""
    return {
        "source code of minitrain": _source(),
        "version of NumPy": np.__version__,
        "byte order": sys.byteorder,
    }


def require_same_software(world: Comm) -> None:
    """Raises the same ConfigError on every rank if one has anything else. Collective; free for one rank."""
    if world.size == 1:
        return
    mine = software()
    same = alike(world, np.array([fingerprint(text) for text in mine.values()]))
    problems = []
    for (name, text), is_same in zip(mine.items(), same, strict=True):
        if not is_same:
            texts = gather_texts(world, text)
            odd = [rank for ranks, _ in grouped(texts)[1:] for rank in ranks]
            verb = "has" if len(odd) == 1 else "have"
            what = f"{name_ranks(odd)} {verb} another {name} than the rest"
            problems.append(Problem(what, who_says(texts), "install the same on every machine"))
    if problems:
        raise MinitrainError.everywhere(problems, ConfigError.exit_code)


def _source() -> str:
    """A hash of every file of the package."""
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
