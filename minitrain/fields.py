"""Every field of the configuration by its dotted name: what the command line and a TOML file may say."""

import difflib
import functools
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from minitrain.config import Config

SLIP = 0.65  # likeness from which a word is taken for a slip of the keyboard
LONGEST = 100  # letters of a word that is looked at: the search takes time in proportion


class Field(NamedTuple):
    """One field. `kinds` are the types of its values but for None, `choices` the values if listed."""

    name: str  # "model.layers", or "precision" at the top level
    kinds: tuple[Any, ...]
    choices: tuple[Any, ...]
    default: Any
    help: str


def sections() -> dict[str, Any]:
    """The records a configuration is made of, by the name of their TOML table; "" is the top level."""
    hints = get_type_hints(Config)
    return {"": Config} | {name: hint for name, hint in hints.items() if is_dataclass(hint)}


def known_fields() -> dict[str, Field]:
    """All fields, those of the top level first, then in the order of config.py."""
    table = {}
    for section, record in sections().items():
        hints = get_type_hints(record)
        helps = _comments(record)
        for field in fields(record):
            hint = hints[field.name]
            if is_dataclass(hint):
                continue
            name = f"{section}.{field.name}" if section else field.name
            table[name] = Field(name, _kinds(hint), _choices(hint), field.default, helps.get(field.name, ""))
    return table


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most likely meant: one that ends alike (`lr` for `optim.lr`), else one spelt alike."""
    name = name[:LONGEST].lower()
    section, _, end = name.rpartition(".")

    def likeness(candidate: str) -> tuple[float, float]:
        its_section, _, its_end = candidate.rpartition(".")
        whole, last = _likeness(name, candidate), _likeness(end, its_end)
        if section and section in sections() and section != its_section and end != its_end:
            last = 0.0  # `train.epochs` is no slip for `optim.eps`
        return (last if section else max(whole, last)), whole  # `run.` makes `run.resume` no `run.progress`

    best = max(known, key=likeness)
    return best if likeness(best)[0] >= SLIP else None


def what_is_known(name: str) -> str:
    """For a name of which none is near: those of its section, or the sections."""
    section = name.partition(".")[0]
    of_section = [known.partition(".")[2] for known in known_fields() if known.startswith(f"{section}.")]
    if of_section:
        return f"{section} has {', '.join(of_section)}"
    return f"the sections are {', '.join(filter(None, sections()))}"


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def field_value(config: Config, name: str) -> Any:
    """The value of a field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


@functools.cache
def _comments(record: type) -> dict[str, str]:
    """The comment after each field, from the source text."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(record), re.MULTILINE))


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Literal, tuple) or not get_args(hint):
        return (hint,)
    return tuple(kind for kind in get_args(hint) if kind is not type(None))


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()
