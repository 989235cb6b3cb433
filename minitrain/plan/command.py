"""`python -m minitrain plan`: from what was asked for to the text that is printed."""

from collections.abc import Collection
from typing import Any

from minitrain.config import Config
from minitrain.errors import ConfigError, Problem
from minitrain.fields import nearest
from minitrain.plan.as_json import as_json, search_as_json
from minitrain.plan.machines import find_machine
from minitrain.plan.page import page
from minitrain.plan.prediction import predict
from minitrain.plan.presets import PRESETS
from minitrain.plan.search import search
from minitrain.plan.search_page import search_page
from minitrain.plan.textbook_page import textbook_page


def check_asked(asked: dict[str, Any], switches: set[str], given: Collection[str]) -> list[Problem]:
    """What is wrong with the options of a plan. `given`: the fields that were named, a preset's too."""
    problems = []
    preset, hardware, file = asked["preset"], asked["hardware"], asked["hardware-file"]

    def wrong(what: str, where: str, remedy: str) -> None:
        problems.append(Problem(what, where, remedy))

    if preset is not None and preset not in PRESETS:
        meant = nearest(preset, PRESETS)
        remedy = f"there are {', '.join(PRESETS)}" + (f"; the nearest is {meant}" if meant else "")
        wrong(f"no preset is called '{preset}'", "--preset", remedy)
    if hardware is None and file is not None:
        wrong(
            "a file of machines is given, but none is named", "--hardware-file", "name one: --hardware NAME"
        )
    if "search" in switches and hardware is None:
        wrong("a search compares times, but no machine is named", "--search", "name one: --hardware NAME")
    if "search" in switches and "train.global_batch" not in given:
        remedy = "train.global_batch = the sequences of a step"
        wrong("a search compares steps of one size, but none is given", "--search", remedy)
    if {"search", "explain"} <= switches:
        remedy = "leave it out, and explain the plan of a layout that the search finds"
        wrong("a search lists layouts and explains none", "--explain", remedy)
    if "textbook" in switches and (given or switches & {"json", "search"} or any(asked.values())):
        remedy = "leave the rest out, but for --explain"
        wrong("the textbook's table is of no run, but more is given", "--textbook", remedy)
    if hardware is not None:
        try:
            find_machine(hardware, file)
        except ConfigError as error:
            problems += error.problems
    return problems


def check_peak(config: Config, asked: dict[str, Any]) -> list[Problem]:
    """Whether the machine multiplies in the precision of the configuration."""
    name, file = asked["hardware"], asked["hardware-file"]
    if name is None or find_machine(name, file).peak(config.precision) is not None:
        return []
    what = f"no peak of {name} is known in {config.precision}"
    return [Problem(what, "--hardware, precision", "choose another precision, or give it in --hardware-file")]


def plan_text(config: Config, asked: dict[str, Any]) -> str:
    """Of a legal configuration. `asked`: options and switches, `world` and the names of fields `given`."""
    if asked["textbook"]:
        return textbook_page(asked["explain"])
    machine = find_machine(asked["hardware"], asked["hardware-file"]) if asked["hardware"] else None
    if asked["search"]:
        assert machine is not None
        found = search(config, asked["given"], asked["world"], machine)
        return search_as_json(found) if asked["json"] else search_page(found)
    prediction = predict(config, machine)
    return as_json(prediction, asked["explain"]) if asked["json"] else page(prediction, asked["explain"])
