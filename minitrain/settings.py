"""Settings: defaults < TOML file < command line, put together and checked for names and types, on rank 0."""

import json
import tomllib
from dataclasses import dataclass
from typing import Any

from minitrain.arguments import Arguments
from minitrain.config import Config
from minitrain.errors import Problem
from minitrain.fields import Field, known_fields, nearest, sections, what_is_known


@dataclass(frozen=True)
class Settings:
    """What the user asked for, `None` still in the place of what follows from it."""

    config: Config
    given: dict[str, Any]  # the fields that the user named, by dotted name
    problems: list[Problem]
    doubtful: set[str]  # fields with a problem: whether other fields fit them is not known


def read_settings(arguments: Arguments) -> Settings:
    """Merges the TOML file and the command line over the defaults. Problems are collected, never raised."""
    values: dict[str, Any] = {}
    problems, doubtful = list(arguments.problems), set(arguments.doubtful)
    if arguments.config is not None:
        values, file_problems, file_doubtful = read_toml(arguments.config)
        problems += file_problems
        doubtful |= file_doubtful
    origin = dict.fromkeys(values, arguments.config) | {name: f"--{name}" for name in arguments.values}
    given = values | arguments.values
    config, ill_typed = _typed(given)
    for name in ill_typed:
        problems.append(_type_problem(known_fields()[name], given.pop(name), str(origin[name])))
        doubtful.add(name)
    return Settings(config, given, problems, doubtful)


def read_toml(path: str) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """The fields of a TOML file by dotted name, its problems, and the fields that these may be about."""
    known = known_fields()
    try:
        with open(path, "rb") as file:
            written = _flat(tomllib.load(file))
    except OSError as error:
        problem = Problem(
            f"cannot read {path}: {error.strerror}", "--config", "name a TOML file that can be read"
        )
        return {}, [problem], set(known)
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        return {}, [Problem(f"not TOML: {error}", path, "correct the file")], set(known)

    problems, doubtful = [], set()
    for name in written.keys() - known.keys():
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
    from pydantic import TypeAdapter, ValidationError

    # JSON, because there pydantic's strict mode takes a dict for a dataclass and a list for a tuple
    def check(fields: dict[str, Any]) -> Config:
        return TypeAdapter(Config).validate_json(json.dumps(_nested(fields), default=str), strict=True)

    # True == 1 would pass for a choice of whole numbers
    paths = [
        name for name, value in given.items() if known_fields()[name].choices and isinstance(value, bool)
    ]
    try:
        config = check(given)
    except ValidationError as error:
        paths += [".".join(str(part) for part in problem["loc"]) for problem in error.errors()]
    if not paths:
        return config, []
    ill_typed = [name for name in given if any(f"{path}.".startswith(f"{name}.") for path in paths)]
    return check({name: value for name, value in given.items() if name not in ill_typed}), ill_typed


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in tables.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
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
    return json.dumps(value, default=str)
