"""Settings: defaults < TOML file < command line, put together and checked for names and types, on rank 0."""

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minitrain.arguments import Arguments
from minitrain.config import Config
from minitrain.errors import Problem
from minitrain.fields import Field, known_fields, nearest, sections, what_is_known
from minitrain.small_file import read_small

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LARGEST = 32 << 10  # bytes of a TOML file, of which all fields there are fill a tenth
MOST_DOTS = 200  # in a line: for a key of n parts Python's reader of TOML takes memory and time with n^2
MOST_UNKNOWN = 20  # keys of it that are told one by one: of more it is another kind of file


@dataclass(frozen=True)
class Settings:
    """What the user asked for, `None` still in the place of what follows from it."""

    config: Config
    given: dict[str, Any]  # the fields that the user named, by dotted name
    problems: list[Problem]
    doubtful: set[str]  # fields with a problem: whether other fields fit them is not known


def read_settings(arguments: Arguments, preset: Mapping[str, Any] | None = None) -> Settings:
    """Merges the TOML file and the command line over the defaults, or over a preset. Problems are collected,
    never raised.
    """
    values: dict[str, Any] = {}
    problems, doubtful = list(arguments.problems), set(arguments.doubtful)
    if arguments.config is not None:
        values, file_problems, file_doubtful = read_toml(arguments.config)
        problems += file_problems
        doubtful |= file_doubtful
    origin = dict.fromkeys(values, arguments.config) | {name: f"--{name}" for name in arguments.values}
    given = dict(preset or {}) | values | arguments.values
    config, ill_typed = _typed(given)
    for name in ill_typed:
        problems.append(_type_problem(known_fields()[name], given.pop(name), str(origin[name])))
        doubtful.add(name)
    return Settings(config, given, problems, doubtful)


def read_toml(path: str) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """The fields of a TOML file by dotted name, its problems, and the fields that these may be about."""
    known = known_fields()
    try:
        text = read_small(path, LARGEST)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problem = Problem(f"cannot read {path}: {reason}", "--config", "name a TOML file that can be read")
        return {}, [problem], set(known)
    try:
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError("a line has hundreds of dots")
        written = _flat(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # of TOML, of a number with thousands of digits, of depth
        return {}, [Problem(f"not TOML: {error}", path, "correct the file")], set(known)

    problems, doubtful = [], set()
    unknown = sorted(written.keys() - known.keys())
    if len(unknown) > MOST_UNKNOWN:
        what = f"{len(unknown)} keys are unknown, such as {unknown[0]}"
        return {}, [Problem(what, path, "name a file of settings")], set(known)
    for name in unknown:
        if name in sections():
            problems.append(
                Problem(f"{name} is {_shown(written[name])}", path, f"write it as a table, [{name}]")
            )
            doubtful |= {field for field in known if field.startswith(f"{name}.")}
        else:
            meant = nearest(name, known)
            problems.append(
                Problem(
                    f"unknown key {name}",
                    path,
                    f"the nearest known is {meant}" if meant else what_is_known(name),
                )
            )
            doubtful |= {meant} if meant else set()
    return {name: value for name, value in written.items() if name in known}, sorted(problems), doubtful


def _typed(given: dict[str, Any]) -> tuple[Config, list[str]]:
    """The configuration of those fields that have values of the right type, and the names of the others."""
    known = known_fields()

    # JSON, because there pydantic's strict mode takes a dict for a dataclass and a list for a tuple
    def check(fields: dict[str, Any]) -> Config:
        return _reader().validate_json(json.dumps(_nested(fields), default=str), strict=True)

    def fits(name: str, value: Any) -> bool:
        if known[name].choices and isinstance(value, bool):
            return False  # True == 1 would pass for a choice of whole numbers
        try:
            check({name: value})
        except (ValueError, RecursionError):  # of the type; or of what JSON cannot hold: a byte that is no
            return False  # UTF-8, thousands of digits, a hundred levels
        return True

    ill_typed = [name for name, value in given.items() if not fits(name, value)]
    return check({name: value for name, value in given.items() if name not in ill_typed}), ill_typed


@functools.cache
def _reader() -> "TypeAdapter[Config]":
    """Made once, as it takes longer than all it reads."""
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names. An empty table is a value, and a wrong one, but where a section is meant."""
    fields: dict[str, Any] = {}
    for name, value in tables.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and (value or path in sections()):
            fields |= _flat(value, f"{path}.")
        else:
            fields[path] = value
    return fields


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        (tables.setdefault(section, {}) if section else tables)[field] = value
    return tables


def _type_problem(field: Field, value: Any, origin: str) -> Problem:
    nouns = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if field.choices:
        expected = "one of " + ", ".join(map(str, field.choices))
        meant = _nearest_choice(value, field.choices)
        remedy = "choose one of these" if meant is None else f"the nearest is {meant}"
    else:
        expected = " or ".join(nouns.get(kind, "two numbers") for kind in field.kinds)
        remedy = f"give {expected}"
    return Problem(f"{field.name} is {_shown(value)}, not {expected}", origin, remedy)


def _nearest_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """The choice most likely meant, None where that is a guess."""
    if type(value) is int and type(choices[0]) is int:
        return min(choices, key=lambda choice: abs(choice - value))
    return nearest(str(value), map(str, choices))


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except (ValueError, RecursionError):
        return "beyond all measure"
