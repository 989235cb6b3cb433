"""A configuration as text: JSON to send it to other ranks, TOML to keep and to edit."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minitrain.config import Config
from minitrain.fields import sections


def to_json(config: Config) -> str:
    """One line of JSON."""
    return json.dumps(asdict(config))


def from_json(text: str) -> Config:
    """The inverse of `to_json`. Checks nothing."""
    parts = {}
    for name, entry in json.loads(text).items():
        if name in sections():
            fields = {
                field: tuple(value) if isinstance(value, list) else value for field, value in entry.items()
            }
            parts[name] = sections()[name](**fields)
        else:
            parts[name] = entry
    return Config(**parts)


def to_toml(config: Config) -> str:
    """TOML, without what is None, because TOML has no such value."""
    import tomli_w

    def present(table: dict[str, Any]) -> dict[str, Any]:
        return {k: present(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}

    return tomli_w.dumps(present(asdict(config)))


def repeatable(config: Config) -> Config:
    """Enough to repeat a run from any directory: with absolute paths, and without what is one run's own."""
    data = replace(config.data, path=_absolute(config.data.path) if config.data.path else None)
    export = config.run.export_hf
    run = replace(
        config.run,
        dir=None,
        resume="no",
        init_from=_absolute(config.run.init_from) if config.run.init_from else None,
        export_hf=_absolute(export) if isinstance(export, str) else export,
    )
    return replace(config, data=data, run=run)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
