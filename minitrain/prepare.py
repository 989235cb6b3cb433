"""What rank 0 does before anything starts: reads the arguments, checks everything, says what all will do."""

import errno
import json
import math
import os
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from minitrain.arguments import Arguments, help_of, parse
from minitrain.checkpoint.catalogue import is_own
from minitrain.config import Config, ModelConfig
from minitrain.config_text import to_json, to_toml
from minitrain.errors import ConfigError, Problem
from minitrain.fields import field_value
from minitrain.observe.console import show
from minitrain.observe.run_directory import (
    check_run_directory,
    claim_run_directory,
    locked,
    release_run_directory,
)
from minitrain.plan.command import check_asked, check_peak
from minitrain.plan.presets import PRESETS, Preset
from minitrain.resolve import AXES, ranks_wanted, resolve
from minitrain.resume import Start, changes, check_resume, continued, find_start
from minitrain.settings import Settings, read_settings
from minitrain.study import TOPICS, list_topics, topics_with
from minitrain.study.figures import check_figures
from minitrain.validate import validate


class Job(NamedTuple):
    """What all ranks are told. With an `exit_code` there is nothing left to do."""

    command: str = ""
    exit_code: int | None = None
    config: str = ""  # as JSON
    notices: tuple[str, ...] = ()
    checkpoint: str = ""  # the manifest of the one to go on from
    rest: dict[str, Any] | None = None  # the arguments of a command other than train

    def to_text(self) -> str:
        return json.dumps(self._asdict())

    @staticmethod
    def from_text(text: str) -> "Job":
        return Job(**json.loads(text))


DONE = Job(exit_code=0)


def prepare(argv: list[str], n_processes: int, held: ExitStack | None = None) -> Job:
    """The job that `argv` asks for, after printing what it asks to be printed. Raises MinitrainError.

    `held` keeps the lock of the run directory until the job ends; without it nothing stays locked.
    """
    arguments = parse(argv)
    if "help" in arguments.switches:
        show(help_of(arguments.command).rstrip())
        return DONE
    if "version" in arguments.switches:
        show(f"minitrain {_version()}")
        return DONE
    if arguments.command == "study" and not any(arguments.rest.values()):
        show(f"{list_topics()}\n\npython -m minitrain study TOPIC shows one of them")
        return DONE
    if arguments.command == "plan":
        return _prepare_plan(arguments, n_processes)
    if arguments.command != "train":
        return _prepare_other(arguments, n_processes)
    with ExitStack() as briefly:
        return _prepare_train(arguments, n_processes, held or briefly)


def _prepare_train(arguments: Arguments, n_processes: int, held: ExitStack) -> Job:
    from minitrain.checkpoint.manifest import to_text

    settings = read_settings(arguments)
    settings = replace(settings, problems=settings.problems + _check_names(settings.config))
    has_lock = _lock_early(settings, arguments, held)
    start = None if settings.problems else find_start(settings)
    if start:
        settings = continued(settings, start, n_processes)
    config, notices = check_settings(settings, n_processes, start)
    if "print-config" in arguments.switches:
        show(to_toml(config).rstrip())
        return DONE
    if "dry-run" in arguments.switches:
        _show_dry_run(config, notices)
        return DONE
    claim = claim_run_directory(config)
    held.callback(release_run_directory, claim.made)  # if nothing was written there in the end
    if not has_lock:
        held.enter_context(locked(claim.directory))
    config = replace(config, run=replace(config.run, dir=str(claim.directory)))
    checkpoint = to_text(start.manifest) if start else ""
    return Job("train", None, to_json(config), tuple(notices), checkpoint)


def _prepare_plan(arguments: Arguments, n_processes: int) -> Job:
    """A plan's configuration is legal as that of a run is; what surrounds a run is not looked at."""
    asked, problems = arguments.rest, _one_process("plan", n_processes)
    preset = PRESETS.get(asked["preset"], Preset({}))
    settings = read_settings(arguments, preset.fields)
    given, named = settings.given, settings.config.parallel
    of_preset = preset.world if named.dp is None else None
    world = asked["world"] or of_preset or ranks_wanted(named)
    if not settings.doubtful & AXES and named.dp and asked["world"] not in (None, ranks_wanted(named)):
        what = f"dp x tp x pp = {ranks_wanted(named)} ranks, but --world is {world}"
        remedy = f"give {ranks_wanted(named)}, or leave --world or parallel.dp out"
        problems.append(Problem(what, "--world", remedy))
        world = ranks_wanted(named)
    problems += settings.problems + _check_names(settings.config)
    if asked["hardware-file"] is not None and not _can_be_a_path(asked["hardware-file"]):
        problems.append(_no_path("--hardware-file"))
    else:
        problems += check_asked(asked, arguments.switches, given)
    notices: list[str] = []
    pretrained: ModelConfig | None = None
    if settings.config.run.init_from and not problems:
        pretrained, notices = _pretrained(settings.config.run.init_from)
    resolved = resolve(settings.config, given, world, pretrained, settings.doubtful)
    problems += resolved.problems + validate(resolved.config, world, resolved.doubtful)
    if not problems:
        problems += check_peak(resolved.config, asked)
    if problems:
        raise ConfigError(problems)
    stays = read_settings(arguments).given  # in a search: what a preset says of the layout is free
    switches = {name: name in arguments.switches for name in ("json", "explain", "search", "textbook")}
    asked = {**asked, **switches, "world": world, "given": sorted(stays)}
    return Job("plan", None, to_json(resolved.config), tuple(notices), rest=asked)


def _one_process(command: str, n_processes: int) -> list[Problem]:
    if n_processes == 1:
        return []
    what = f"{command} runs in one process, but {n_processes} were started"
    return [Problem(what, "command line", "start it without mpirun")]


def _lock_early(settings: Settings, arguments: Arguments, held: ExitStack) -> bool:
    """Locks the directory of a run that goes on, before its checkpoints are looked at."""
    run, only_shown = settings.config.run, arguments.switches & {"print-config", "dry-run"}
    if settings.problems or only_shown or run.resume == "no" or not run.dir or not os.path.isdir(run.dir):
        return False
    held.enter_context(locked(Path(run.dir)))
    return True


def check_settings(
    settings: Settings, n_processes: int, start: Start | None = None
) -> tuple[Config, list[str]]:
    """The resolved configuration and notices. Raises ConfigError with every problem there is."""
    config = settings.config
    on_threads = config.collectives == "threads" and n_processes == 1
    n_ranks = ranks_wanted(config.parallel) if on_threads else n_processes
    pretrained: ModelConfig | None = None
    notices: list[str] = []
    if config.run.init_from and not settings.problems and not start:
        pretrained, notices = _pretrained(config.run.init_from)
    resolved = resolve(config, settings.given, n_ranks, pretrained, settings.doubtful)
    problems = settings.problems + resolved.problems + validate(resolved.config, n_ranks, resolved.doubtful)
    problems += _check_surroundings(resolved.config, n_processes, start)
    problems += check_resume(resolved.config, start)
    if problems:
        raise ConfigError(problems)
    _check_export(resolved.config, start)
    notices += changes(resolved.config, start) if start else []
    return resolved.config, notices + resolved.notices


def _pretrained(directory: str) -> tuple[ModelConfig, list[str]]:
    from minitrain.checkpoint.hf_config import read_hf_model_config

    return read_hf_model_config(directory)


def _check_names(config: Config) -> list[Problem]:
    """Paths that are none, before any is looked at."""
    problems = []
    for name in ("data.path", "run.init_from", "run.export_hf", "run.dir", "run.resume"):
        value = field_value(config, name)
        if value == "":
            problems.append(Problem(f"{name} is empty", name, "give a path, or leave it out"))
        elif isinstance(value, str) and not _can_be_a_path(value):
            problems.append(_no_path(name))
    return problems


def _can_be_a_path(text: str) -> bool:
    """Whether a file could have that name: not if it is too long, or holds a NUL character."""
    try:
        os.lstat(text)
    except ValueError:
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def _no_path(name: str) -> Problem:
    return Problem(f"{name} is a name that no file can have", name, "give the path of a file or directory")


def _check_surroundings(config: Config, n_processes: int, start: Start | None) -> list[Problem]:
    """What the configuration meets outside of itself: the launcher, and paths to write to."""
    problems = []
    if config.collectives == "threads" and n_processes > 1:
        what = f"threads are the ranks of one process, but {n_processes} processes were started"
        problems.append(Problem(what, "collectives", "start it without mpirun, or leave collectives out"))
    directory, export = config.run.dir, config.run.export_hf
    if directory is None or (directory and _can_be_a_path(directory)):
        goes_on = config.run.resume == "auto" or (start is not None and is_own(start.directory, directory))
        problems += check_run_directory(directory, goes_on)
    if directory and isinstance(export, str):
        if Path(directory, "x").absolute().is_relative_to(Path(export).absolute()):
            what = f"the run directory {directory} would lie in {export}, which is to hold weights only"
            problems.append(Problem(what, "run.dir, run.export_hf", "choose another run.export_hf"))
    return problems


def _check_export(config: Config, start: Start | None) -> None:
    """Raises CheckpointError if the weights could not be written at the end."""
    from minitrain.checkpoint.huggingface import check_hf_destination
    from minitrain.checkpoint.weights import export_directory

    export, run = config.run.export_hf, config.run.dir
    if isinstance(export, str) or (export and run and os.path.isdir(run)):
        directory = export_directory(config)
        assert directory is not None
        own = export is True and start and is_own(start.directory, run)
        if not (own and directory.is_dir()):  # the files of an earlier part of this run give way
            check_hf_destination(directory, config.model)


def _show_dry_run(config: Config, notices: list[str]) -> None:
    """The banner of a run whose data too have been looked at."""
    from minitrain.data.tokens import check_all_ids, open_tokens, split
    from minitrain.observe.banner import banner

    tokens = open_tokens(config.data)
    check_all_ids(tokens, config.model.vocab)
    split(tokens, config.data.holdout, config.model.seq_len)
    show(banner(config, notices))
    show("dry run: the configuration is legal and its data can be read; nothing was started")


def _prepare_other(arguments: Arguments, n_processes: int) -> Job:
    rest, topic = arguments.rest, arguments.rest.get("topic")
    command = f"study {topic}" if topic else arguments.command
    lecture = topic is not None and "ranks" in TOPICS[topic].options
    problems = _check_ranks(rest, n_processes) if lecture else _one_process(command, n_processes)
    paths = ("directory", "source", "destination", "run", "out")
    names = [name for name in paths if not _can_be_a_path(rest.get(name) or ".")]
    problems += [_no_path(name) for name in names] or _CHECKS[arguments.command](rest)
    if problems:
        raise ConfigError(problems)
    return Job(arguments.command, rest=rest)


def _check_generate(rest: dict[str, Any]) -> list[Problem]:
    problems = []
    for name in ("tokens", "seed"):
        if rest[name] < 0:
            problems.append(Problem(f"--{name} is {rest[name]}", "command line", "give 0 or more"))
    if not 0 <= rest["temperature"] < math.inf:
        what = f"--temperature is {rest['temperature']}"
        problems.append(Problem(what, "command line", "give a finite number, 0 or more"))
    if not rest["prompt"]:
        problems.append(Problem("--prompt is empty", "command line", "give at least one letter"))
    return problems


def _check_convert(rest: dict[str, Any]) -> list[Problem]:
    if os.path.realpath(rest["source"]) != os.path.realpath(rest["destination"]):
        return []
    return [Problem("SRC and DST are the same directory", "command line", "give a new one as DST")]


def _check_study(rest: dict[str, Any]) -> list[Problem]:
    topic, problems = rest["topic"], []
    if topic is None:
        return [Problem("study has options, but no TOPIC", "command line", "`study` alone lists the topics")]
    takes = TOPICS[topic].options
    for name in ("out", "steps", "ranks", "all"):
        if rest[name] is not None and name not in takes:
            what = f"--{name} is given, but {topic} has no such option"
            others = "a lecture (`study` alone lists them)" if name in ("ranks", "all") else topics_with(name)
            problems.append(Problem(what, "command line", f"leave it out, or choose {others}"))
    if "steps" in takes and rest["steps"] is not None and rest["steps"] < 1:
        problems.append(Problem(f"--steps is {rest['steps']}", "command line", "give 1 or more"))
    if "out" in takes:
        if rest["out"] == "":
            problems.append(Problem("--out is empty", "command line", "give a path, or leave it out"))
        problems += check_figures()
    return problems


def _check_ranks(rest: dict[str, Any], n_processes: int) -> list[Problem]:
    """Of a lecture."""
    topic, asked = rest["topic"], rest["ranks"]
    sizes = TOPICS[topic].sizes
    possible = ", ".join(map(str, sizes))
    if n_processes > 1:
        if asked is not None:
            what = f"--ranks {asked} asks for threads, but {n_processes} processes were started"
            return [Problem(what, "command line", "leave out --ranks, or mpirun")]
        if n_processes not in sizes:
            what = f"{topic} cannot be shown on {n_processes} ranks"
            return [Problem(what, "command line", f"start one of {possible} with mpirun")]
    elif asked is not None and asked not in sizes:
        what = f"--ranks is {asked}, and {topic} cannot be shown on so many"
        return [Problem(what, "command line", f"give one of {possible}")]
    return []


def _check_report(rest: dict[str, Any]) -> list[Problem]:
    empty = [
        Problem(f"{name} is empty", "command line", "give a path")
        for name in ("run", "out")
        if rest[name] == ""
    ]
    return empty or check_figures()


_CHECKS = {
    "generate": _check_generate,
    "convert": _check_convert,
    "checkpoint": lambda rest: [],
    "study": _check_study,
    "report": _check_report,
}


def _version() -> str:
    try:
        return metadata.version("minitrain")
    except metadata.PackageNotFoundError:
        return "(not installed)"
