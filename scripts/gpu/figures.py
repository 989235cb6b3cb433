"""From what was measured to what is said: rates, shares, ratios, and the tables that show them."""

from collections.abc import Sequence
from typing import Any

from problems import Problem

from minitrain.config import ModelConfig
from minitrain.observe.flops import flops_per_token, peak_flops

NAMES = {"minitrain": "minitrain", "eager": "PyTorch eager", "compiled": "PyTorch compile"}


def matrix_parameters(model: ModelConfig) -> int:
    """N: every parameter once, without an embedding that is not the head too."""
    return (flops_per_token(model) - attention_flops(model)) // 6


def attention_flops(model: ModelConfig) -> int:
    """6 L C T: what causal attention takes for a token, forward and backward."""
    return 6 * model.layers * model.width * model.seq_len


def add_rates(record: dict[str, Any], problem: Problem, ceiling: float | None) -> None:
    """To a record of a contender that is done."""
    rate = problem.tokens / record["seconds"]
    causal = flops_per_token(problem.model)
    full = causal + attention_flops(problem.model)  # as if queries met later keys as well
    peak = peak_flops([record["card"]], "bf16")
    record["tokens_per_second"] = rate
    record["mfu"] = rate * causal / peak if peak else None
    record["mfu_12"] = rate * full / peak if peak else None
    record["of_ceiling"] = rate * causal / ceiling if ceiling else None


def add_ratios(records: Sequence[dict[str, Any]]) -> None:
    """To ours, of one model: our speed over that of each PyTorch."""
    done = {r["who"]: r for r in records if r["status"] == "done"}
    if "minitrain" in done:
        for who in ("eager", "compiled"):
            ratio = done[who]["seconds"] / done["minitrain"]["seconds"] if who in done else None
            done["minitrain"][f"ratio_{who}"] = ratio


HEADER = (
    "model", "who", "ms/step", "min .. max", "tokens/s", "MFU", "MFU12", "ceiling", "/eager", "/compile",
    "launch", "pool", "card", "first",
)  # fmt: skip
EXPLANATION = """\
ms/step: median over rounds. MFU: (6 N + 6 L C T) FLOPs a token over the card's dense bf16 peak; MFU12: with
12 L C T. ceiling: the same FLOPs over those of a product of 8192^3 by our own gemm. /eager, /compile: our
speed over PyTorch's. launch: ms of the host until a step is started, with the GPU idle before. pool: GiB that
the allocator took; card: GiB the card has less. first: seconds of the first step (compilation, choices)."""


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each record. Of one that is not done, what became of it instead of figures."""
    return _columns([HEADER, *map(row, records)], left=2)


def _columns(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """The first `left` columns begin alike, the others end alike; of a shorter row the last cell is no part
    of a column.
    """
    widths = [0] * len(rows[0])
    for cells in rows:
        for i, cell in enumerate(cells if len(cells) == len(widths) else cells[:-1]):
            widths[i] = max(widths[i], len(cell))
    lines = []
    for cells in rows:
        pairs = enumerate(zip(cells, widths, strict=False))
        lines.append("  ".join(c.ljust(n) if i < left else c.rjust(n) for i, (c, n) in pairs))
    return lines


def row(r: dict[str, Any]) -> tuple[str, ...]:
    who = r["model"], NAMES[r["who"]]
    if r["status"] != "done":
        return (*who, f"{r['status']}: {r['message']}")
    times = ("seconds", "seconds_min", "seconds_max", "launch")
    ms, least, most, launch = (f"{1e3 * r[key]:.2f}" for key in times)
    shares = ("-" if r[key] is None else f"{r[key]:.1%}" for key in ("mfu", "mfu_12", "of_ceiling"))
    ratios = ("-" if r.get(key) is None else f"{r[key]:.2f}" for key in ("ratio_eager", "ratio_compiled"))
    memory = (f"{r[key] / 2**30:.1f}" for key in ("pool_bytes", "card_bytes"))
    rates = (f"{r['tokens_per_second']:.0f}", *shares, *ratios)
    return (*who, ms, f"{least} .. {most}", *rates, launch, *memory, f"{r['first_step']:.1f}")


def breakdown(rows: Sequence[dict[str, Any]], least_share: float = 0.005) -> list[str]:
    """Of one step, the longest first; what is less than that share of it, together."""
    total = sum(r["seconds"] for r in rows)
    shown = [r for r in rows if r["seconds"] >= least_share * total]
    rest = [r for r in rows if r["seconds"] < least_share * total]
    if rest:
        calls, seconds = (sum(r[key] for r in rest) for key in ("calls", "seconds"))
        shown.append(
            {"name": f"{len(rest)} others", "calls": calls, "seconds": seconds, "bytes": 0, "flops": 0}
        )
    cells = [("kernel", "calls", "ms", "share", "GB/s", "TFLOP/s")]
    for r in shown:
        cells.append((
            r["name"], str(r["calls"]), f"{1e3 * r['seconds']:.3f}", f"{r['seconds'] / total:.1%}",
            _rate(r["bytes"], r["seconds"], 1e9), _rate(r["flops"], r["seconds"], 1e12),
        ))  # fmt: skip
    cells.append(("all", str(sum(r["calls"] for r in shown)), f"{1e3 * total:.3f}", "", "", ""))
    return _columns(cells, left=1)


def _rate(amount: int, seconds: float, unit: float) -> str:
    return f"{amount / seconds / unit:.0f}" if amount and seconds > 0 else "-"
