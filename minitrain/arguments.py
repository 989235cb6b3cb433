"""The command line: `[COMMAND] [--config FILE.toml] [--section.field VALUE ...]`, read and not yet judged.

There is an option for every field of the configuration. A value is read as TOML reads it, but that text needs
no quotes. All problems of a line are collected, so that the user sees them at once.
"""

import argparse
import inspect
import tomllib
from dataclasses import dataclass, field, replace
from typing import Any, get_origin

from minitrain.errors import ConfigError, Problem
from minitrain.fields import Field, known_fields, nearest, sections, what_is_known
from minitrain.plan.machines import MACHINES
from minitrain.plan.presets import PRESETS
from minitrain.study import TOPICS, list_topics, topics_with

PROGRAM = "python -m minitrain"
MOST_RANKS = 1_000_000  # of a plan
LONGEST = 1000  # letters of a word that may be more than text
COMMANDS = {
    "train": "train a model and write a run directory (the default)",
    "generate": "sample text from a directory of weights",
    "convert": "Hugging Face directories to and from checkpoints",
    "checkpoint": "list the checkpoints in a directory, or read every byte of them",
    "plan": "predict memory, traffic and time of a run, and start nothing",
    "study": "show a topic step by step, in numbers and figures; without one list them",
    "report": "make a page of a run: curves, the pipeline, bytes, and its collectives one by one",
}
STUDY = """Shows a topic. Collectives and parallelism are lectures: they run on the ranks of mpirun, or by
themselves on threads, and on a terminal show a step at a time."""
SWITCHES = {
    "help": "print this and exit",
    "version": "print the version and exit",
    "print-config": "print the resolved configuration as TOML and exit",
    "dry-run": "check everything, show what would run, start nothing",
    "debug": "show tracebacks",
}
PLAN_SWITCHES = {
    "json": "print the numbers for programs",
    "explain": "print the formula of every number, and what is assumed",
    "search": "rank the legal layouts that fit by the predicted time of a step",
    "textbook": "print the textbook's memory of 10 B parameters, and ZeRO's of 7.5 B",
}
PLAN_OPTIONS = {
    "world": ("N", "ranks (default: those of the preset, or of dp x tp x pp)"),
    "preset": ("NAME", "a model by name, under what else is given: " + ", ".join(PRESETS)),
    "hardware": ("NAME", "what it is to run on: " + ", ".join(MACHINES) + ", or one of a file"),
    "hardware-file": ("FILE.toml", "machines besides these (plan/machines.py says how)"),
}


@dataclass(frozen=True)
class Arguments:
    """What was typed."""

    command: str
    switches: set[str]
    config: str | None = None  # the TOML file
    values: dict[str, Any] = field(default_factory=dict)  # of configuration fields, by dotted name
    rest: dict[str, Any] = field(default_factory=dict)  # the arguments of a command other than train
    problems: list[Problem] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)  # fields with a problem: what fits them is not known


def parse(argv: list[str]) -> Arguments:
    """The arguments of any command. Raises ConfigError if there is no such command."""
    if not argv or argv[0].startswith("-"):
        return _parse_settings(argv, "train")
    command, words = argv[0], argv[1:]
    if command not in COMMANDS:
        meant = nearest(command, COMMANDS)
        remedy = f"there are {', '.join(COMMANDS)}" + (f"; the nearest is {meant}" if meant else "")
        raise ConfigError([Problem(f"unknown command '{command}'", "command line", remedy)])
    if command in ("train", "plan"):
        return _parse_settings(words, command)
    if "--help" in words or "-h" in words:
        return Arguments(command, {"help"})
    rest = vars(_PARSERS[command]().parse_args(words))
    return Arguments(command, {"debug"} if rest.pop("debug") else set(), rest=rest)


def help_of(command: str) -> str:
    """The text of --help."""
    return _PARSERS[command]().format_help()


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110)


class _Parser(argparse.ArgumentParser):
    """argparse, but it raises its errors and guesses no abbreviations."""

    def __init__(self, command: str, switches: tuple[str, ...], **options: Any) -> None:
        super().__init__(
            prog=f"{PROGRAM} {command}".strip(),
            allow_abbrev=False,
            add_help=False,
            formatter_class=_formatter,
            **options,
        )
        for name in switches:
            names = ["-h", "--help"] if name == "help" else [f"--{name}"]
            self.add_argument(*names, action="store_true", dest=name, help=(SWITCHES | PLAN_SWITCHES)[name])

    def error(self, message: str) -> Any:
        raise ConfigError([Problem(message, "command line", f"{self.prog} --help shows what there is")])


def _train_parser(n_values: str | None = None) -> _Parser:
    """With `n_values="*"` every option takes any number of values, so that all wrong ones are found."""
    commands = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    parser = _Parser(
        "",
        tuple(SWITCHES),
        usage=f"{PROGRAM} [COMMAND] [--config FILE.toml] [--section.field VALUE ...]",
        description=f"Trains a transformer; under `mpirun -n N` on N ranks.\n\ncommands:\n{commands}",
        epilog="The command line goes before the TOML file, and the file before the defaults.",
    )
    _add_settings(parser, n_values)
    return parser


def _plan_parser(n_values: str | None = None) -> _Parser:
    """The same, and options of its own."""
    parser = _Parser(
        "plan",
        ("help", "debug", *PLAN_SWITCHES),
        usage=f"{PROGRAM} plan [--world N] [--preset NAME] [--hardware NAME] [--section.field VALUE ...]",
        description=f"{COMMANDS['plan'].capitalize()}. Settings are those of train.",
    )
    for name, (metavar, text) in PLAN_OPTIONS.items():
        parser.add_argument(f"--{name}", nargs=n_values, metavar=metavar, help=text)
    _add_settings(parser, n_values)
    return parser


def _add_settings(parser: _Parser, n_values: str | None) -> None:
    """The file, and an option for every field."""
    parser.add_argument(
        "--config",
        nargs=n_values,
        action="append",
        metavar="FILE.toml",
        help="one file of settings, a table for each section",
    )
    groups: dict[str, Any] = {"": parser}
    for section, record in sections().items():
        if section:
            groups[section] = parser.add_argument_group(section, inspect.getdoc(record))
    for name, option in known_fields().items():
        group = groups[name.rpartition(".")[0]]
        group.add_argument(f"--{name}", nargs=n_values, metavar=_metavar(option), help=_help(option))


def _generate_parser() -> _Parser:
    parser = _Parser("generate", ("help", "debug"), description=COMMANDS["generate"])
    add = parser.add_argument
    add("directory", metavar="DIR", help="a Hugging Face directory of weights")
    add("--prompt", required=True, metavar="TEXT", help="how the text begins")
    add("--tokens", type=int, default=256, metavar="N", help="tokens to generate (default: 256)")
    add("--temperature", type=float, default=0.7, metavar="X", help="0: the most likely token (default: 0.7)")
    add("--seed", type=int, default=0, metavar="N", help="of the random numbers (default: 0)")
    return parser


def _convert_parser() -> _Parser:
    parser = _Parser("convert", ("help", "debug"), description=COMMANDS["convert"])
    parser.add_argument("direction", choices=["from-hf", "to-hf"], help="from or to a Hugging Face directory")
    parser.add_argument("source", metavar="SRC", help="directory to read")
    parser.add_argument("destination", metavar="DST", help="directory to write")
    return parser


def _checkpoint_parser() -> _Parser:
    parser = _Parser("checkpoint", ("help", "debug"), description=COMMANDS["checkpoint"])
    parser.add_argument("action", choices=["ls", "verify"], help="a line for each, or check all of them")
    parser.add_argument("directory", metavar="DIR", help="of a run, or of a checkpoint")
    return parser


def _study_parser() -> _Parser:
    description = f"{STUDY}\n\n{list_topics()}"
    parser = _Parser("study", ("help", "debug"), description=description)
    add = parser.add_argument
    add("topic", metavar="TOPIC", nargs="?", choices=TOPICS, help="one of those above")
    out, steps = topics_with("out"), topics_with("steps")
    add("--out", metavar="DIR", help=f"of {out}: directory of the figures (default: study-TOPIC)")
    add("--steps", type=int, metavar="N", help=f"of {steps}: steps of each run (default: 300)")
    add("--ranks", type=int, metavar="N", help="of a lecture: ranks, as threads (default: 4)")
    add("--all", action="store_const", const=True, help="of a lecture: do not wait for Enter on a terminal")
    return parser


def _report_parser() -> _Parser:
    parser = _Parser("report", ("help", "debug"), description=COMMANDS["report"])
    parser.add_argument("run", metavar="RUN", help="directory of a run, which may still be going on")
    parser.add_argument("--out", metavar="DIR", help="for the page and its figures (default: RUN/report)")
    return parser


_PARSERS = {
    "train": _train_parser,
    "plan": _plan_parser,
    "generate": _generate_parser,
    "convert": _convert_parser,
    "checkpoint": _checkpoint_parser,
    "study": _study_parser,
    "report": _report_parser,
}


def _parse_settings(argv: list[str], command: str) -> Arguments:
    parser = _plan_parser("*") if command == "plan" else _train_parser("*")
    typed, extras = parser.parse_known_args(_join_negative_numbers(argv))
    arguments = Arguments(command, {name for name, value in vars(typed).items() if value is True})
    own = [*SWITCHES] if command == "train" else ["help", "debug", *PLAN_SWITCHES, *PLAN_OPTIONS]
    _note_unknown(extras, arguments, own)
    options = {name: words for name, words in vars(typed).items() if isinstance(words, list)}
    files = [file for words in options.pop("config", []) for file in words]
    for name in PLAN_OPTIONS if command == "plan" else ():
        words = options.pop(name.replace("-", "_"), None)
        arguments.rest[name] = None if words is None else _plan_value(name, words, arguments)
    known = known_fields()
    for name, words in options.items():
        option = known[name]
        if not words and bool in option.kinds:
            arguments.values[name] = True
        elif len(words) == 2 and _is_pair(option):
            arguments.values[name] = [_value(word, option) for word in words]
        elif len(words) == 1:
            arguments.values[name] = _value(words[0], option)
        else:
            what = f"--{name} takes {'2 values' if _is_pair(option) else '1 value'}, not {len(words)}"
            arguments.problems.append(Problem(what, f"--{name}", f"write --{name} {_metavar(option)}"))
            arguments.doubtful.add(name)
    if typed.config and len(files) != 1:
        what = f"--config takes 1 file, not {len(files)}"
        arguments.problems.append(Problem(what, "--config", "write --config FILE.toml once"))
        files = []
    return replace(arguments, config=files[0] if files else None)


def _plan_value(name: str, words: list[str], arguments: Arguments) -> str | int | None:
    """None if it was given wrongly, which is a problem."""
    metavar, _ = PLAN_OPTIONS[name]
    if len(words) != 1:
        problem = Problem(
            f"--{name} takes 1 value, not {len(words)}", f"--{name}", f"write --{name} {metavar}"
        )
    elif name != "world":
        return words[0]
    elif words[0].isdecimal() and 0 < int(words[0][:LONGEST]) <= MOST_RANKS:
        return int(words[0])
    else:
        what = f"--world is {words[0]}, not a number of ranks"
        problem = Problem(what, "--world", f"give a whole number from 1 to {MOST_RANKS:,}")
    arguments.problems.append(problem)
    return None


def _join_negative_numbers(argv: list[str]) -> list[str]:
    """`--optim.lr -1e-3` as `--optim.lr=-1e-3`, because argparse takes a word like -1e-3 for an option."""
    words: list[str] = []
    for word in argv:
        if word.startswith("-") and _is_number(word) and words and words[-1].startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _note_unknown(extras: list[str], arguments: Arguments, own: list[str]) -> None:
    """Problems of what the parser did not know: options, and words that belong to none. `own`: the options of
    the command that are no settings.
    """
    after_option = False
    for word in extras:
        if word.startswith("-"):
            option = word.partition("=")[0]
            name = option.lstrip("-")
            meant = nearest(name, [*known_fields(), "config", *own])
            remedy = f"the nearest known is --{meant}" if meant else what_is_known(name)
            arguments.problems.append(Problem(f"unknown option {option}", "command line", remedy))
            if meant:
                arguments.doubtful.add(meant)
            after_option = True
        elif not after_option:
            remedy = "a command comes first, an option begins with --"
            arguments.problems.append(Problem(f"unexpected word '{word}'", "command line", remedy))


def _value(word: str, option: Field) -> Any:
    """The word as TOML would read it, or as it stands: for text, and for what TOML cannot read."""
    is_text = str in option.kinds or isinstance(option.default, str)
    if is_text and not (bool in option.kinds and word in ("true", "false")):
        return word
    if (float in option.kinds or _is_pair(option)) and _is_number(word):
        return float(word)
    try:
        parsed = tomllib.loads(f"value = {word}") if len(word) <= LONGEST else {}
    except (ValueError, RecursionError):  # of TOML, of a number with thousands of digits, of depth
        return word
    return parsed["value"] if len(parsed) == 1 else word


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_pair(option: Field) -> bool:
    return any(get_origin(kind) is tuple for kind in option.kinds)


def _metavar(option: Field) -> str:
    if option.choices:
        return "{" + ",".join(map(str, option.choices)) + "}"
    if _is_pair(option):
        return "X Y"
    names = {int: "N", float: "X", str: "TEXT", bool: "true|false"}
    return "|".join(names[kind] for kind in option.kinds)


def _help(option: Field) -> str:
    text = option.help.replace("%", "%%")
    if option.default is None or "(default" in text:
        return text
    default = " ".join(map(str, option.default)) if _is_pair(option) else str(option.default)
    return f"{text} (default: {default.lower() if bool in option.kinds else default})"
