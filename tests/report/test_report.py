"""Are the numbers of a report right, and is it made of whatever a run's directory may hold?"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from launch import run_minitrain

from minitrain.cli import main
from minitrain.comm.traced import ring_bytes
from minitrain.config import Config, ModelConfig, ParallelConfig, TrainConfig
from minitrain.config_text import to_toml
from minitrain.errors import ConfigError, DataError
from minitrain.model.spec import model_specs
from minitrain.observe.timeline import AFTER
from minitrain.prepare import prepare
from minitrain.report.costs import costs
from minitrain.report.grid_part import slice_text
from minitrain.report.holdings import process_grid, tensor_slices, zero_shards
from minitrain.report.pipeline import MOVING, WAITING, measured_bubble, segments
from minitrain.report.predicted import bytes_held, bytes_held_by_ranks, bytes_sent, bytes_sent_by_ranks
from minitrain.report.run_files import read_run
from minitrain.report.trace import Trace, Work, collectives, of_step, step_shown
from minitrain.report.write import write_report
from minitrain.resolve import resolve
from minitrain.study.figures import draw

SMALL = ["--model.layers", 3, "--model.width", 24, "--model.heads", 4, "--model.kv_heads", 1]
QUIET = ["--run.export_hf", "false", "--run.keep", 0, "--run.sample_tokens", 0, "--data.holdout", 0.001]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on 8 threads, in a layout that has every axis."""
    directory = tmp_path_factory.mktemp("runs") / "real"
    layout = ["--parallel.dp", 2, "--parallel.tp", 2, "--parallel.pp", 2, "--parallel.zero", 3]
    more = ["--model.tied", "true", "--parallel.sequence", "true", "--model.seq_len", 16, "--train.steps", 3]
    traced = ["--collectives", "threads", "--run.dir", directory, "--run.trace", "true"]
    done = run_minitrain(*traced, *layout, *SMALL, *QUIET, *more)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def copy(real: Path, tmp_path: Path) -> Path:
    return shutil.copytree(real, tmp_path / "copy", ignore=shutil.ignore_patterns("report"))


@pytest.fixture(scope="module")
def page(real: Path) -> str:
    """Its report."""
    return page_of(real)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds: here they are empty."""

    def draw_nothing(path: Path, inches: Any, paint: Any) -> list[Path]:
        path.with_suffix(".svg").write_text("<svg></svg>")
        return [path, path.with_suffix(".svg")]

    monkeypatch.setattr("minitrain.report.figures.draw", draw_nothing)


def page_of(run: Path, out: Path | None = None) -> str:
    return write_report(run, out or run / "report").read_text()


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of all tables in a section of the page, without the heads."""
    part = page[page.index(f'<section id="{section}">') :]
    part = part[: part.index("</section>")]
    rows = re.findall(r"<tr>(.*?)</tr>", part, flags=re.DOTALL)
    cells = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows)
    return [[unescape(cell) for cell in row] for row in cells if row]


# What it says of a real run.


def test_bytes_are_those_of_the_run(real: Path, page: str) -> None:
    run = read_run(real)
    assert run.trace is not None and [s.step for s in run.steps] == [1, 2, 3]
    for step in run.steps:
        assert all(pair.exact for pair in bytes_sent(run.config, step))
        assert all(pair.exact for pair in bytes_held(run.config, step, gpu=False))
    n_ranks = range(8)
    assert bytes_sent_by_ranks(run.config, run.trace) == dict.fromkeys(n_ranks, True)
    assert bytes_held_by_ranks(run.config, run.trace.memory, False) == dict.fromkeys(n_ranks, True)

    last = json.loads((real / "metrics.jsonl").read_text().splitlines()[-2])
    measured = {(axis, verb): n for axis, verbs in last["comm_bytes"].items() for verb, n in verbs.items()}
    rows = {tuple(row[:2]): row[2:] for row in rows_of(page, "bytes") if len(row) == 5}
    assert rows.pop(("all", ""))[1] == f"{sum(measured.values()):,}"
    assert rows == {name: [f"{n:,}", f"{n:,}", "exact"] for name, n in measured.items()}
    held = {row[0]: row[1:] for row in rows_of(page, "bytes") if len(row) == 4}
    assert held.pop("all")[1] == f"{sum(last['memory_bytes'].values()):,}"
    assert held == {name: [f"{n:,}", f"{n:,}", "exact"] for name, n in last["memory_bytes"].items()}
    assert "each of 8 ranks sends what is predicted" in page and "each of 8 ranks holds what is" in page


def test_a_byte_too_many_is_marked(copy: Path, undrawn: None) -> None:
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(lines[-2])
    entry["comm_bytes"]["tp"]["all_gather"] += 1
    entry["memory_bytes"]["moments"] -= 1
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:-2], json.dumps(entry), lines[-1], ""]))
    events = json.loads((copy / "trace.json").read_text())["traceEvents"]
    step = step_shown(read_run(copy).trace)  # type: ignore[arg-type]
    arguments = (e["args"] for e in events if e["ph"] == "X" and e["pid"] == 5)
    next(args for args in arguments if args["step"] == step and args.get("sent_bytes"))["sent_bytes"] += 1
    next(e for e in reversed(events) if e["ph"] == "C" and e["pid"] == 3)["args"]["parameters"] += 1
    (copy / "trace.json").write_text(json.dumps({"traceEvents": events}))

    page = page_of(copy)
    differing = [row[:2] for row in rows_of(page, "bytes") if row[-1] == "differs"]
    assert [row[0] for row in differing] == ["tp", "moments"]
    assert "exact in 2 of 3 steps" in page
    assert "these ranks send other than what is predicted: 5." in page
    assert "these ranks hold other than what is predicted: 3." in page


def test_every_call_of_a_step_is_in_the_replay(real: Path, page: str) -> None:
    """Whole collectives: every member once, and the bytes of all of them those of the metrics."""
    run = read_run(real)
    assert run.trace is not None
    shown = of_step(run.trace, step_shown(run.trace))
    made = collectives(shown.calls)
    for collective in made:
        called = [call.rank for call in collective.calls if call.verb != "wait"]
        assert sorted(called) == sorted(collective.first.ranks)
        assert len({call.elements for call in collective.calls}) == 1
        assert collective.start <= collective.complete_from <= collective.end
    sent: Counter[tuple[str, str]] = Counter()
    for call in (call for collective in made for call in collective.calls if call.rank == 0):
        sent[call.axis, call.verb] += call.sent_bytes
    sent -= Counter()  # receives
    assert sent == {pair.name: pair.measured for pair in bytes_sent(run.config, run.steps[-1])}

    data = json.loads(re.search(r'id="collectives">(.*?)</script>', page)[1])  # type: ignore[index]
    assert len(data["calls"]) == len(made)
    assert [(rank["row"], rank["column"]) for rank in data["ranks"]] == [divmod(rank, 4) for rank in range(8)]
    for call in data["calls"]:
        assert call["sent"] == ring_bytes(call["verb"], call["bytes"], len(call["ranks"]))
        assert call["site"].startswith("minitrain/") and call["what"]


def test_costs_add_up_to_the_time_in_calls(real: Path) -> None:
    trace = read_run(real).trace
    assert trace is not None
    made = collectives(trace.calls)
    found = costs(made, n_steps=3, n_ranks=8)
    whole = sum(call.end - call.start for c in made for call in c.calls) / 24
    assert sum(cost.time for cost in found) == pytest.approx(whole)
    assert sum(cost.calls for cost in found) == pytest.approx(len(made) / 3)
    assert [c.time for c in found] == sorted((c.time for c in found), reverse=True)
    assert {cost.part for cost in found if cost.axis == "tp"} >= {"layers.*", "embedding", "head"}


def test_figures_lie_beside_the_page_and_within(real: Path, page: str) -> None:
    names = ["loss", "gradient-norm", "throughput", "pipeline", "bytes-sent", "memory", "grid"]
    assert re.findall(r'<figure id="figure-([\w-]+)"><svg', page) == names
    assert {path.name for path in (real / "report").iterdir()} == {
        "index.html", *(f"{n}.png" for n in names), *(f"{n}.svg" for n in names)
    }  # fmt: skip
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(src|href)="(?!#|data:,)', page.replace('xlink:href="#', "")), "asks the network"


# The bubble of a pipeline whose times are known.


def config_of(dp: int = 1, tp: int = 1, pp: int = 2, micro: int = 2, **model: Any) -> Config:
    config = Config(
        model=replace(ModelConfig(layers=4), **model),
        parallel=ParallelConfig(dp=dp, tp=tp, pp=pp),
        train=TrainConfig(steps=3, global_batch=dp * micro, micro_batch=1),
    )
    return resolve(config, {}, dp * tp * pp).config


Pieces = dict[int, Sequence[tuple[str, int | None, float, float]]]
# 1F1B of two stages and two micro-batches, forward 10 ms and backward 20 on each, as in the textbook
TEXTBOOK: Pieces = {
    0: [("forward", 0, 0, 10), ("forward", 1, 10, 20), ("backward", 0, 40, 60), ("backward", 1, 70, 90)],
    1: [("forward", 0, 10, 20), ("backward", 0, 20, 40), ("forward", 1, 40, 50), ("backward", 1, 50, 70)],
}


def made_up(directory: Path, config: Config, pieces: Pieces, calls: Sequence[dict[str, Any]] = ()) -> Path:
    """The directory of a run that has this trace, by milliseconds, and one step."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(to_toml(config))
    metrics = {
        "step": 1, "loss": 5.5, "grad_norm": 1.0, "lr": 1e-3, "tokens": 64, "seconds": 0.1, "skipped": False,
        "mfu": None, "memory_bytes": {}, "comm_bytes": {},
    }  # fmt: skip
    (directory / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    events = [
        slice_of(rank, 0, start, end, step=1, phase=phase, micro=micro, part="")
        for rank, of_rank in pieces.items()
        for phase, micro, start, end in of_rank
    ]
    (directory / "trace.json").write_text(json.dumps({"traceEvents": [*events, *calls]}))
    return directory


def slice_of(rank: int, lane: int, start: float, end: float, **args: Any) -> dict[str, Any]:
    times = {"ts": 1e3 * start, "dur": 1e3 * (end - start)}
    return {"ph": "X", "name": "", "pid": rank, "tid": lane, **times, "args": args}


def call_of(rank: int, start: float, end: float, **more: Any) -> dict[str, Any]:
    known = dict(verb="all_reduce", axis="tp", ranks=[0, 1], in_group=1, dtype="float32", elements=8)
    size = dict(bytes=32, sent_bytes=32)
    purpose = dict(step=1, phase="forward", micro=0, part="layers.0", site="minitrain/x.py:1 in f")
    return slice_of(rank, 1, start, end, **known | size | purpose | more)


def test_a_textbook_pipeline_has_the_textbook_bubble(tmp_path: Path, undrawn: None) -> None:
    run = read_run(made_up(tmp_path / "run", config_of(), TEXTBOOK))
    assert run.trace is not None
    bubble = measured_bubble(run.config, run.trace.work)
    assert (bubble.idle, bubble.working, bubble.of_stage) == (pytest.approx(60), pytest.approx(120), [60, 60])
    rows = rows_of(page_of(tmp_path / "run"), "pipeline")
    assert rows[0] == ["idle / working", "(p-1)/m", "0.500", "0.500", "0.500"]
    assert rows[1] == ["idle / all", "(p-1)/(m+p-1)", "0.333", "0.333", "0.333"]


@pytest.mark.parametrize(("dp", "tp", "second"), [(2, 1, (2, 3)), (1, 2, (1, 3))])
def test_the_bubble_of_unequal_stages_and_of_two_pipelines(
    dp: int, tp: int, second: tuple[int, int], tmp_path: Path
) -> None:
    """In the second the last backward takes 30 ms longer; an update is not of the pipeline."""
    late = [*TEXTBOOK[0][:-1], ("backward", 1, 70, 120), (AFTER, None, 120, 500)]
    pieces: Pieces = {0: TEXTBOOK[0], tp: TEXTBOOK[1], second[0]: late, second[1]: TEXTBOOK[1]}
    run = read_run(made_up(tmp_path, config_of(dp, tp), pieces))
    assert run.trace is not None
    bubble = measured_bubble(run.config, run.trace.work)
    assert bubble.working == pytest.approx(120 + 150) and bubble.idle == pytest.approx(2 * (90 + 120) - 270)
    assert bubble.of_stage == pytest.approx([75, 60])


def test_waiting_ends_when_the_last_has_come(tmp_path: Path) -> None:
    """Rank 1 comes 3 ms after rank 0. A receive waits for its send, or a send for its receive; the wait for
    the end of a started send begins after both.
    """
    message, other = dict(axis="pp", in_group=7), dict(axis="pp", in_group=8)
    nothing = dict(bytes=0, sent_bytes=0)
    calls = [
        call_of(0, 1, 6),
        call_of(1, 4, 7),
        call_of(0, 12, 13, verb="send", **message),
        call_of(1, 8, 15, verb="recv", **nothing, **message),
        call_of(0, 16, 17, verb="wait", **nothing, **message),
        call_of(0, 21, 22, verb="send", **other),
        call_of(1, 24, 26, verb="recv", **nothing, **other),
    ]
    work: Pieces = {rank: [("forward", 0, 0, 30)] for rank in (0, 1)}
    run = read_run(made_up(tmp_path, config_of(tp=2, pp=1), work, calls))
    assert run.trace is not None
    pieces = segments(run.trace.work, collectives(run.trace.calls))
    (sent,) = (c for c in collectives(run.trace.calls) if c.first.in_group == 7)
    assert (sent.end, sent.moving) == (pytest.approx(15), pytest.approx(3)), (
        "its sender's wait is no part of it"
    )
    times = {(p.rank, p.kind, p.start, p.end) for p in pieces if p.kind in (WAITING, MOVING)}
    assert times == {
        (0, WAITING, 1, 4), (0, MOVING, 4, 6), (1, MOVING, 4, 7),
        (0, MOVING, 12, 13), (1, WAITING, 8, 12), (1, MOVING, 12, 15), (0, MOVING, 16, 17),
        (0, WAITING, 21, 22), (1, MOVING, 24, 26),
    }  # fmt: skip


def test_a_usual_step_is_shown() -> None:
    """The first is not: it is slower, or, of these four, faster."""
    work = [
        Work(0, step, "forward", 0, 0, time) for step, time in ((1, 1.0), (2, 10.0), (3, 12.0), (4, 11.0))
    ]
    assert step_shown(Trace(work, [], {})) == 4
    assert step_shown(Trace(work[:1], [], {})) == 1


# Who holds what.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_slices_are_those_of_the_table_of_parameters(arch: str, tied: bool) -> None:
    """Every tensor is there; its slices cover it once, or as often as there are copies."""
    config = config_of(tp=4, arch=arch, kv_heads=2, width=64, ffn=90, vocab=259, tied=tied)
    table = {row.name: row for row in tensor_slices(config)}
    specs = {spec.name.replace("layers.0.", "layers.*."): spec for spec in model_specs(config.model)}
    assert table.keys() == {name for name in specs if not re.match(r"layers\.\d", name)}
    for name, row in table.items():
        held = sum((box[row.spec.tp_dim or 0].stop - box[row.spec.tp_dim or 0].start) for box in row.held)
        assert held == row.spec.shape[row.spec.tp_dim or 0] * specs[name].tp_replicas(4)
    k = table["layers.*.attn.k"]
    assert k.cut == "rows (outputs), 2 heads, each held by 2"
    assert [slice_text(k, rank) for rank in range(4)] == [
        "rows 0–15 (head 0)", "rows 0–15 (head 0)", "rows 16–31 (head 1)", "rows 16–31 (head 1)",
    ]  # fmt: skip
    assert slice_text(table["layers.*.mlp.down"], 3) == "columns 67–89"
    assert slice_text(table["layers.*.attn.norm"], 3) == "all"
    assert table["embedding"].stages == ("0 and 1" if tied else "0")


def test_the_grid_is_that_of_the_communicators() -> None:
    """tp varies fastest, then pp, then shard, then replica; layers are dealt to stages."""
    config = config_of(dp=4, tp=2, pp=2, layers=5)
    config = replace(config, parallel=replace(config.parallel, zero=1, shard=2))
    cells = process_grid(config)
    found = [tuple(cell.place) for cell in cells]
    assert found[:5] == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, 1), (0, 1, 0, 0)]
    assert found[15] == (1, 1, 1, 1)
    assert [cells[0].layers, cells[2].layers] == [range(3), range(3, 5)]


def test_shards_cover_every_element(real: Path) -> None:
    config = read_run(real).config
    specs = {spec.name.removeprefix("layers.0."): spec for spec in model_specs(config.model)}
    sizes = {name: math.prod(s.stop - s.start for s in spec.tp_slice(0, 2)) for name, spec in specs.items()}
    for shard in zero_shards(config):
        found: Counter[str] = Counter()
        for tensors in shard.tensors:
            found.update(dict(tensors))
        assert found == {name: sizes[name] for name in found} and shard.full - found.total() < 2
        assert len(found) == {"embedding": 1, "blocks": 9, "head": 1}[shard.unit]
        assert shard.own[0].start == 0 and shard.own[1].start == shard.own[0].stop
        assert shard.own[1].stop == shard.full
    assert zero_shards(replace(config, parallel=replace(config.parallel, zero=0, shard=1))) == []


# Runs that are not done, directories that are none, and what means harm.


def test_a_run_without_a_trace_tells_how_to_get_one(copy: Path, undrawn: None) -> None:
    (copy / "trace.json").unlink()
    assert page_of(copy).count("is written when a run ends") == 3
    config = (copy / "config.toml").read_text()
    assert config.count("trace = true") == 1
    (copy / "config.toml").write_text(config.replace("trace = true", "trace = false"))
    page = page_of(copy)
    assert page.count("--run.trace true") == 3 and "<script" not in page
    assert rows_of(page, "bytes") and rows_of(page, "grid") and not (copy / "report/pipeline.svg").exists()


def test_a_step_that_was_skipped(tmp_path: Path, undrawn: None) -> None:
    """Its gradient is not finite, for which the recorder writes null."""
    options = (
        "--precision fp16 --loss_scale.initial 1e9 --train.steps 2 --data.holdout 0 --run.sample_tokens 0"
    )
    assert (
        main(["train", *options.split(), "--run.progress", "none", "--run.dir", str(tmp_path / "run")]) == 0
    )
    run = read_run(tmp_path / "run")
    assert run.steps[0].skipped and math.isnan(run.steps[0].grad_norm)
    assert "<html" in page_of(tmp_path / "run")


def test_a_run_that_goes_on(copy: Path, undrawn: None) -> None:
    """The last line is half written; at the very beginning there is none."""
    (copy / "trace.json").unlink()
    whole = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:-20])
    assert "2 of 3 steps" in page_of(copy)
    (copy / "metrics.jsonl").write_bytes(b"")
    assert page_of(copy).count("No step is done yet.") == 3


def test_curves_of_long_runs_are_thinned_and_of_lost_numbers_interrupted(copy: Path) -> None:
    line = json.loads((copy / "metrics.jsonl").read_text().splitlines()[0])
    lines = [
        json.dumps({**line, "step": n, "loss": {8: float("nan"), 9: float("inf")}.get(n, 1.0)})
        for n in range(1, 4001)
    ]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page_of(copy)
    assert (copy / "report" / "loss.svg").stat().st_size < 200_000


HOSTILE = "</script><script>alert(1)</script>\"'&$\\frac{$"


def test_nothing_in_a_file_becomes_part_of_the_page(copy: Path) -> None:
    """A name of markup stays text wherever it comes from: settings, metrics, trace, the directory itself."""
    config = read_run(copy).config
    config = replace(config, data=replace(config.data, path=HOSTILE))
    (copy / "config.toml").write_text(to_toml(config))
    text = (copy / "metrics.jsonl").read_text().replace('"moments"', json.dumps(HOSTILE))
    (copy / "metrics.jsonl").write_text(text.replace('"tp": {', json.dumps(HOSTILE) + ": {"))
    trace = json.loads((copy / "trace.json").read_text())
    for event in trace["traceEvents"]:
        if "site" in event.get("args", {}):
            event["args"] |= {"site": HOSTILE, "part": HOSTILE}
    (copy / "trace.json").write_text(json.dumps(trace))
    run = copy.rename(copy.parent / "<script>alert(2)<")

    page = page_of(run)
    assert "alert(1)" in page and "alert(2)" in page
    assert not re.search(r"<script[^>]*>\s*alert", page)
    scripts = re.findall(r"<script[^>]*>", page)
    assert scripts == ['<script type="application/json" id="collectives">', "<script>"]
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'id="collectives">(.*?)</script>', page)[1])  # type: ignore[index]
    assert data["calls"][0]["site"] == HOSTILE


def damages() -> Iterator[tuple[str, str, bytes | None, str]]:
    yield "no config", "config.toml", None, "has no config.toml"
    yield "no metrics", "metrics.jsonl", None, "has no metrics.jsonl"
    yield "config of another kind", "config.toml", b"[model]\nlayer = 3\n", "unknown key model.layer"
    yield "config that is not legal", "config.toml", b"[model]\nheads = 3\n", "heads"
    yield "config of bytes", "config.toml", b"\xff\xfe", "cannot read"
    yield "metrics of another kind", "metrics.jsonl", b"{}\n", "line 1 of"
    yield "metrics that are a list", "metrics.jsonl", b"[]\n", "line 1 of"
    yield "metrics of bytes", "metrics.jsonl", b"\xff\n", "line 1 of"
    yield "trace cut off", "trace.json", b'{"traceEvents":[', "is not the trace of a run"
    yield "trace of another kind", "trace.json", b"[1]", "is not the trace of a run"
    yield (
        "trace of other ranks",
        "trace.json",
        json.dumps({"traceEvents": [slice_of(8, 0, 0, 1, step=1, phase="loss", micro=0)]}).encode(),
        "is not the trace of a run",
    )
    yield (
        "trace without times",
        "trace.json",
        json.dumps(
            {"traceEvents": [slice_of(0, 0, 0, float("nan"), step=1, phase="loss", micro=0)]}
        ).encode(),
        "is not the trace of a run",
    )


@pytest.mark.parametrize(
    ("name", "content", "told"), [d[1:] for d in damages()], ids=[d[0] for d in damages()]
)
def test_a_damaged_directory_is_refused(copy: Path, name: str, content: bytes | None, told: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(told)):
        read_run(copy)


def test_the_command(copy: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["report", str(copy), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}/index.html\n" and not (copy / "report").exists()
    refused = [
        ([tmp_path / "nowhere"], 3),
        ([tmp_path], 3),
        ([copy / "config.toml"], 3),
        ([copy, "--out", copy / "config.toml"], 2),
        ([copy, "--out", ""], 2),
        ([""], 2),
        (["a\0b"], 2),
        ([], 2),
    ]
    for arguments, code in refused:
        assert main(["report", *map(str, arguments)]) == code
        told = capsys.readouterr().err
        assert re.fullmatch(r"minitrain: error: [^;\n]+; [^;\n]+; [^;\n]+\n", told), told


def test_one_process_makes_a_report(copy: Path) -> None:
    with pytest.raises(ConfigError, match="report runs in one process, but 2 were started"):
        prepare(["report", str(copy)], 2)


def test_numbers_in_figures_are_not_shortened(tmp_path: Path) -> None:
    """Coordinates are, to hundredths; what is written beside a mark is not."""
    _, svg = draw(tmp_path / "x", (3, 2), lambda figure: figure.subplots().set_yticks([0.0011111, 0.0025]))
    assert "0.0025" in svg.read_text() and not re.search(r'="[^"]*\d\.\d{3}', svg.read_text())
