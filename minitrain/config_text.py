"""A configuration as text: JSON to send it to other ranks, TOML to keep and to edit."""

import json
from dataclasses import asdict
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
