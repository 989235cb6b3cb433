"""`python -m minitrain plan`, from what is typed to what is printed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layouts import GPT2, LLAMA, layouts, tiny

from minitrain.cli import main
from minitrain.config import Config
from minitrain.observe.traffic import Place, sent_bytes, traffic
from minitrain.plan import prediction, step_time
from minitrain.plan.held import layout_of
from minitrain.plan.machines import MACHINES
from minitrain.plan.page import sections
from minitrain.plan.prediction import predict
from minitrain.plan.search import candidates, search
from minitrain.plan.step_time import ASSUMPTIONS

RUNS = {
    "alone": "",
    "preset": "--preset gpt2-124m --world 8 --hardware h100 --precision bf16",
    "zero": "--world 8 --parallel.zero 3 --parallel.tp 2 --hardware a100-40gb --optim.name muon",
    "host": "--world 4 --run.exact true --model.arch gpt2",
    "megatron": "--preset megatron-1t --hardware a100-80gb",
}


def printed(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    assert main(["plan", *arguments.split()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_explain_has_a_formula_for_every_title(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A number stands in a column with a formula, or in a row with one; the first columns are text."""
    out = printed(capsys, f"{arguments} --json --explain")
    found = json.loads(out)["formulas"]
    page = printed(capsys, f"{arguments} --explain")
    for title, formulas in found.items():
        lines = [f"    {name}: {text}" for name, text in formulas.items()]
        assert {title, *lines} <= set(page.splitlines())


@pytest.mark.parametrize("machine", [None, "h100"])
@pytest.mark.parametrize("layout", [dict(), dict(dp=4, tp=2, pp=2, zero=2, sequence=True)], ids=str)
def test_no_number_without_a_formula(layout: dict[str, Any], machine: str | None) -> None:
    found = sections(predict(tiny(LLAMA, **layout), MACHINES[machine] if machine else None))
    assert len(found) == (8 if machine else 7)
    for section in found:
        titles, rows = section.rows[0], section.rows[1:]
        for row in rows:
            for column in range(section.left, len(titles)):
                named = {titles[column], row[0]}
                assert named & section.formulas.keys(), f"{section.title}: {named}"


def test_assumptions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, RUNS["preset"] + " --explain")
    assert all(text in page for text in ASSUMPTIONS)
    assert "assumed" not in printed(capsys, RUNS["alone"] + " --explain")


@pytest.mark.parametrize("layout", ["", "--parallel.zero 3", "--parallel.tp 2 --parallel.pp 2"])
def test_metrics_of_a_run_are_what_was_planned(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0's memory and traffic, to the byte, as a real run writes them down."""
    monkeypatch.chdir(tmp_path)
    shape = "--model.width 32 --train.global_batch 16 --precision bf16"
    given = f"{shape} --parallel.dp 2 {layout}"
    threads = "--collectives threads --train.steps 2 --data.holdout 0 --run.dir run --run.progress none"
    rest = "--run.sample_tokens 0 --run.export_hf false --run.keep 0 --run.compare_every 0"
    assert main([*given.split(), *threads.split(), *rest.split()]) == 0
    capsys.readouterr()
    plan = json.loads(printed(capsys, f"{given} --json"))
    first = plan["stages"][0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line.get("step") == 2 and "loss" in line]
    assert last["memory_bytes"] == first["memory_bytes"]
    assert last["comm_bytes"] == first["comm_bytes"]


def test_a_trillion_parameters_on_a_hundred_thousand_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work does not grow with the ranks: the closed form of traffic is asked three times for each kind of
    stage, of which there are at most four.
    """
    asked: list[Place] = []

    def counted(config: Config, place: Place) -> Any:
        asked.append(place)
        return traffic(config, place)

    monkeypatch.setattr(prediction, "traffic", counted)
    monkeypatch.setattr(step_time, "traffic", counted)
    layout = "--world 100000 --parallel.tp 20 --parallel.pp 125 --train.global_batch 4000 --parallel.zero 1"
    page = printed(capsys, f"--preset megatron-1t --hardware h100 {layout}")
    assert "1,008,038,758,400 parameters" in page and "100,000 ranks = dp 40 x pp 125 x tp 20" in page
    assert len(asked) <= 12


def test_a_search_looks_at_every_legal_layout() -> None:
    """As `layouts` of the tests lists them, of both batches of sequences that fit."""
    config = tiny(GPT2, dp=1)
    for world in (1, 4, 8):
        listed = {
            (c["dp"], c["tp"], c["pp"], c["zero"], c["sequence"], recompute)
            for recompute in ("none", "selective", "full")
            for c in layouts(range(world, world + 1), GPT2)
            if c["schedule"] == "1f1b"
            and c["shard"] in (1, c["dp"])
            and (c["zero"] == 0 or c["shard"] == c["dp"] > 1)
            and (c["tp"] != 1 or not c["sequence"])
        }
        given = {"train.micro_batch": 1}
        looked_at = [(layout_of(c), c.parallel.recompute) for c in candidates(config, given, world)]
        found = [(at.dp, at.tp, at.pp, at.zero, at.sequence, recompute) for at, recompute in looked_at]
        assert len(found) == len(set(found)) and set(found) == listed
    flash = replace(config, model=replace(config.model, width=4 * 64), precision="bf16")  # keeps no scores
    assert {c.parallel.recompute for c in candidates(flash, {"train.micro_batch"}, 4)} == {"none", "full"}


def test_what_is_given_stays() -> None:
    config = tiny(GPT2, dp=2, tp=2, pp=2, zero=2)
    given = {"parallel.dp", "parallel.tp", "parallel.pp", "parallel.zero", "parallel.sequence"}
    (only,) = candidates(config, given | {"train.micro_batch", "parallel.recompute"}, 8)
    assert layout_of(only) == layout_of(config)
    some = [layout_of(c) for c in candidates(config, {"parallel.tp"}, 8)]
    assert {at.tp for at in some} == {2} and {at.dp for at in some} == {1, 2, 4}


def test_the_fastest_that_fits_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--preset llama2-7b --world 16 --precision bf16 --train.global_batch 64 --hardware a100-40gb --search"
    )
    found = json.loads(printed(capsys, f"{arguments} --json"))
    times = [one["seconds"] for one in found["fitting"]]
    assert times == sorted(times) and 0 < len(times) < found["legal"]
    assert all(one["bytes"] <= 40e9 for one in found["fitting"])
    best = found["fitting"][0]
    layout = " ".join(f"--parallel.{axis} {best[axis]}" for axis in ("dp", "tp", "pp", "zero", "recompute"))
    layout += (
        f" --parallel.sequence {str(best['sequence']).lower()} --train.micro_batch {best['micro_batch']}"
    )
    plan = json.loads(printed(capsys, arguments.replace("--search", f"--json {layout}")))
    assert plan["fits"] and plan["step"]["seconds"] == best["seconds"]
    first = printed(capsys, arguments).splitlines()[2].split()
    assert first[:4] == ["1", str(best["dp"]), str(best["pp"]), str(best["tp"])]


def test_where_nothing_fits_the_nearest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--preset gpt3-175b --world 2 --precision bf16 --train.global_batch 8 --hardware h100 --search"
    )
    assert "none. Nearest comes dp" in printed(capsys, arguments)
    found = search(tiny(GPT2, dp=1), {"parallel.tp", "parallel.pp", "train.micro_batch"}, 3, MACHINES["h100"])
    assert found.legal == 0 and found.smallest is None  # 8 sequences do not divide by 3


def test_textbook(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "--textbook")
    assert (["20.0", "GB"] * 4 + ["80.0", "GB"]) in [line.split() for line in page.splitlines()]
    assert all(number in page for number in ("120.0 GB", "31.4 GB", "16.6 GB", "1.9 GB"))
    assert "2 bytes x 10 x 10^9" in printed(capsys, "--textbook --explain")


def test_settings_go_before_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[model]\nlayers = 3\nwidth = 1536\n")
    found = json.loads(printed(capsys, f"--preset gpt2-124m --config {file} --model.layers 2 --json"))
    model = found["config"]["model"]
    assert (model["layers"], model["width"], model["heads"]) == (2, 1536, 12)


def test_the_world_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """That which is named, else the preset's, else dp x tp x pp."""
    for arguments, ranks in {
        "--world 6 --parallel.tp 2": 6,
        "--preset megatron-1.7b": 32,
        "--preset megatron-1.7b --world 64": 64,
        "--preset megatron-3.6b --parallel.dp 4": 8,
        "--parallel.tp 2 --parallel.pp 2": 4,
        "": 1,
    }.items():
        assert json.loads(printed(capsys, f"{arguments} --json"))["ranks"] == ranks


def test_a_slower_network_takes_longer_and_less_memory_is_not_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(
        '[slow]\nlike = "h100"\nnetwork_gb_s = 1\nmemory_gb = 0.5\n'
        "[mine]\nhalf = 100\nfp32 = 10.0\nmemory_gb = 16\nmemory_gb_s = 500\ncards = 2\nlink_gb_s = 10\n"
        'network_gb_s = 1\nsource = "measured"\n[yours]\nlike = "mine"\nefficiency = 0.9\n'
    )
    base = "--preset gpt2-124m --world 64 --precision bf16 --parallel.tp 2 --json"
    fast = json.loads(printed(capsys, f"{base} --hardware h100"))
    slow = json.loads(printed(capsys, f"{base} --hardware slow --hardware-file {file}"))
    assert slow["step"]["parts"]["once a step"] > 10 * fast["step"]["parts"]["once a step"]
    assert slow["step"]["parts"]["tensor parallel"] == fast["step"]["parts"]["tensor parallel"]
    assert fast["fits"] and not slow["fits"]
    mine, yours = (
        json.loads(printed(capsys, f"{base} --hardware {name} --hardware-file {file}"))["step"]
        for name in ("mine", "yours")
    )
    assert yours["parts"]["products"] == pytest.approx(mine["parts"]["products"] * 0.6 / 0.9, rel=1e-12)


BAD_MACHINES = {
    "half = 1": "half is no table",
    "[mine]\nhalf = 100": "mine lacks fp32, memory_gb",
    '[mine]\nlike = "h1000"': "mine is like h1000, which is unknown",
    '[mine]\nlike = ["h100"]': "mine is like ['h100'], which is unknown",
    f'[mine]\nlike = "h100"\nmemory_gb = 1{400 * "0"}': "mine.memory_gb is 1000",
    '[mine]\nlike = "h100"\nmemory = 3': "unknown key mine.memory; FILE; the nearest known is memory_gb",
    '[mine]\nlike = "h100"\nlink_us = 0': "mine.link_us is 0; FILE; give a number from 1e-9 to 1e9",
    '[mine]\nlike = "h100"\nlink_us = true': "mine.link_us is True",
    '[mine]\nlike = "h100"\nlink_us = inf': "mine.link_us is inf",
    '[mine]\nlike = "h100"\ncards = 1.5': "mine.cards is 1.5; FILE; give a whole number",
    '[mine]\nlike = "h100"\nefficiency = 1.5': "mine.efficiency is 1.5; FILE; give a share, up to 1",
    '[mine]\nlike = "h100"\nsource = 3': "mine.source is no text",
    "[mine": "cannot read FILE",
    '[other]\nlike = "h100"': "no machine is called 'mine'; --hardware; there are a100-40gb,",
}


@pytest.mark.parametrize("text", BAD_MACHINES)
def test_a_bad_file_of_machines(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(text)
    assert main(["plan", "--hardware", "mine", "--hardware-file", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minitrain: error: ") and BAD_MACHINES[text].replace("FILE", str(file)) in err


def test_nothing_of_arrays_or_ranks_is_needed() -> None:
    program = "import sys, minitrain.plan.command; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    loaded = set(done.stdout.split())
    assert "minitrain.plan.command" in loaded
    assert not loaded & {"numpy", "mpi4py", "ml_dtypes", "minitrain.comm", "minitrain.arrays"}


def test_traffic_of_the_page_is_that_of_the_closed_form() -> None:
    config = tiny(LLAMA, dp=2, tp=2, pp=2, zero=1)
    p = predict(config, None)
    for holding, rows in zip(p.holdings, p.rows, strict=True):
        assert sent_bytes(rows) == sent_bytes(traffic(config, Place(0, 0, holding.kind.first, 1)))


def test_what_is_kept_without_a_machine_is_by_the_backend(capsys: pytest.CaptureFixture[str]) -> None:
    """Scores on the host, none with flash attention."""
    arguments = "--preset gpt2-124m --json"
    host, gpu, named = (
        json.loads(printed(capsys, f"{arguments} {more}"))["stages"][0]["of_a_micro_batch"]
        for more in ("", "--backend cupy", "--hardware h100")
    )
    assert host > gpu == named
    assert "as on the host" in printed(capsys, "--preset gpt2-124m")
    assert "as on a GPU" in printed(capsys, "--preset gpt2-124m --backend cupy")


def test_a_search_does_not_keep_to_the_layout_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--preset megatron-1.7b --hardware a100-80gb --search --json"
    free = json.loads(printed(capsys, arguments))["fitting"]
    fixed = json.loads(printed(capsys, f"{arguments} --parallel.tp 4 --train.micro_batch 2"))["fitting"]
    assert {one["tp"] for one in free} > {1, 2, 4} and {one["micro_batch"] for one in free} > {1, 2}
    assert {(one["tp"], one["micro_batch"]) for one in fixed} == {(4, 2)}


def test_logits_count_where_it_is_asked_what_fits() -> None:
    """In fp32, and their gradient in 16 bits, of the last slice of the vocabulary."""
    config = replace(tiny(LLAMA, pp=2, tp=2), precision="bf16")
    first, last = predict(config, None).holdings
    assert (first.logits, last.logits) == (0, 8 * 19 * (4 + 2))
    assert last.most == last.persistent.total + last.activations + last.buffers + last.logits
    big = replace(config.model, vocab=10**6)
    p = predict(replace(config, model=big), None)
    assert p.most == max(h.most for h in p.holdings) and p.most > 8 * 500_000 * 6


def test_the_page_shows_the_rank_that_sends_most() -> None:
    """Without a tied matrix the last stage, for the loss."""
    p = predict(tiny(replace(LLAMA, layers=4), pp=2, tp=2), None)
    (section,) = [section for section in sections(p) if section.title.startswith("collectives")]
    sent = [sum(row.sent for row in rows) for rows in p.rows]
    assert sent[1] > sent[0] and "of a rank of stage 1: " in section.title


def test_no_mfu_of_what_is_computed_again() -> None:
    (section,) = [
        s for s in sections(predict(tiny(LLAMA), MACHINES["h100"])) if s.title.startswith("operations")
    ]
    column = section.rows[0].index("MFU")
    assert {row[0]: row[column] == "-" for row in section.rows[1:]}["the same, recomputed"]
    assert all(row[column].endswith("%") for row in section.rows[1:-1])
