"""A prediction for programs: the numbers of the page, in bytes, seconds and operations, not rounded."""

import json
from dataclasses import asdict
from typing import Any

from minitrain.observe.traffic import Row, sent_bytes
from minitrain.plan.held import layout_of
from minitrain.plan.page import sections
from minitrain.plan.prediction import Holding, Prediction
from minitrain.plan.search import Found, Search


def as_json(p: Prediction, explain: bool) -> str:
    """With `explain` the formulas of every section."""
    at = layout_of(p.config)
    tree: dict[str, Any] = {
        "config": asdict(p.config),
        "ranks": at.ranks,
        "parameters": p.parameters,
        "stages": [_stages(h, rows) for h, rows in zip(p.holdings, p.rows, strict=True)],
        "flops_per_token": {one.name: one.flops for one in p.flops},
        "bubble": {b.schedule: {"ratio": b.ratio, "fraction": b.fraction, "kept": b.kept} for b in p.bubbles},
    }
    if p.machine and p.time:
        tree["machine"] = asdict(p.machine)
        tree["fits"] = p.fits
        tree["step"] = {
            "seconds": p.time.seconds,
            "tokens_per_second": p.time.tokens_per_second,
            "mfu": p.time.mfu,
            "parts": {part.name: part.seconds for part in p.time.parts},
        }
    if explain:
        tree["formulas"] = {section.title: section.formulas for section in sections(p)}
    return json.dumps(tree, indent=1)


def _stages(h: Holding, rows: list[Row]) -> dict[str, Any]:
    """Of one kind of stage. `memory_bytes` and `comm_bytes` are named as in metrics.jsonl."""
    return {
        "stages": [h.kind.first, h.kind.first + h.kind.number - 1],
        "layers": h.layers,
        "elements": h.elements,
        "memory_bytes": {**h.persistent._asdict(), "activations": h.activations, "buffers": h.buffers},
        "of_a_micro_batch": h.kept,
        "in_flight": h.in_flight,
        "logits": h.logits,
        "again": h.again,
        "comm_bytes": sent_bytes(rows),
        "comm": [row._asdict() for row in rows],
    }


def search_as_json(found: Search) -> str:
    """All that fit, the fastest first."""

    def one(f: Found) -> dict[str, Any]:
        rest = {
            "bytes": f.bytes,
            "seconds": f.seconds,
            "tokens_per_second": f.tokens_per_second,
            "mfu": f.mfu,
        }
        return {**asdict(f.config.parallel), "micro_batch": f.config.train.micro_batch, **rest}

    return json.dumps({"legal": found.legal, "fitting": [one(f) for f in found.fitting]}, indent=1)
