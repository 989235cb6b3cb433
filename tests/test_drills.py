"""Every drill does what docs/drills.md says: the symptom is there, and the tool that is named finds it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from launch import REPOSITORY, run_minitrain
from safetensors.numpy import load_file

from minitrain.cli import main
from minitrain.config import Config, ParallelConfig
from minitrain.drills import DRILLS
from minitrain.fields import known_fields
from minitrain.launched import LAUNCHERS
from minitrain.observe.banner import banner
from minitrain.report.predicted import bytes_sent_by_ranks
from minitrain.report.run_files import read_run
from minitrain.report.trace import CallOfRank
from minitrain.resolve import resolve

BASE = {  # four steps of a tiny model, in exact sums
    "collectives": "threads", "model.layers": 4, "model.width": 32, "train.steps": 4, "data.holdout": 0.001,
    "run.exact": "true", "run.keep": 0, "run.sample_tokens": 0, "run.progress": "none",
    "run.export_hf": "false", "run.compare_every": 1, "run.trace": "true",
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {  # where a drill is shown
    "skipped-all-reduce": {"parallel.dp": 2, "parallel.tp": 2},
    "partial-sum": {"parallel.dp": 2, "parallel.tp": 2},
    "swapped-shard": {"parallel.dp": 4, "parallel.zero": 1},
    "dropped-receive": {"parallel.pp": 2},
    "flipped-bit": {"parallel.dp": 4},
    "straggler": {"parallel.dp": 2, "parallel.tp": 2},
    "same-data": {"parallel.dp": 2},
    "sum-for-mean": {"parallel.dp": 2},
}


class Outcome(NamedTuple):
    """What became of a run."""

    directory: Path
    code: int
    out: str
    err: str

    def curve(self, name: str) -> list[float]:
        """Of every step."""
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return [entry[name] for entry in map(json.loads, lines) if name in entry]

    def weights(self, step: int) -> dict[str, np.ndarray]:
        return load_file(self.directory / "checkpoints" / f"step-{step:08}" / "model.safetensors")

    def calls(self, rank: int) -> list[CallOfRank]:
        trace = read_run(self.directory).trace
        assert trace is not None
        return [call for call in trace.calls if call.rank == rank]

    def deviating(self) -> list[int]:
        """Ranks that do not send the bytes that are predicted."""
        files = read_run(self.directory)
        assert files.trace is not None
        return [rank for rank, exact in bytes_sent_by_ranks(files.config, files.trace).items() if not exact]


Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Trains in this process, the ranks being threads; each configuration once."""
    done: dict[tuple[Any, ...], Outcome] = {}

    with pytest.MonkeyPatch.context() as patch:
        for size, rank, _ in LAUNCHERS:
            patch.delenv(size, raising=False)
            patch.delenv(rank, raising=False)

        def train(capsys: pytest.CaptureFixture[str], drill: str = "none", **more: Any) -> Outcome:
            key = drill, *sorted(more.items())
            if key not in done:
                directory = tmp_path_factory.mktemp("runs") / "run"
                capsys.readouterr()
                code = main(arguments(directory, drill, **more))
                done[key] = Outcome(directory, code, *capsys.readouterr())
            return done[key]

        yield train


def arguments(directory: Path, drill: str, **more: Any) -> list[str]:
    axes = {"parallel.dp": 1, "parallel.tp": 1, "parallel.pp": 1}
    fields = BASE | axes | more | {"run.dir": directory, "run.drill": drill}
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def first_difference(run: Outcome, right: Outcome) -> tuple[int | None, int | None]:
    """From which step on loss and gradient norm differ."""

    def first(name: str) -> int | None:
        pairs = enumerate(zip(run.curve(name), right.curve(name), strict=False), 1)
        return next((step for step, (a, b) in pairs if a != b), None)

    return first("loss"), first("grad_norm")


def right_run(train: Train, capsys: pytest.CaptureFixture[str], layout: dict[str, Any]) -> Outcome:
    """One process; or as many as share the same tp."""
    return train(capsys, **{name: size for name, size in layout.items() if name == "parallel.tp"})


# --- what holds for all


def test_every_drill_has_a_section_and_a_name_in_the_settings() -> None:
    choices = known_fields()["run.drill"].choices
    page = (REPOSITORY / "docs" / "drills.md").read_text()
    headings = re.findall(r"^## (\S+)$", page, flags=re.MULTILINE)
    assert choices == ("none", *DRILLS) and headings == [*DRILLS] == [*LAYOUTS]
    for name in DRILLS:
        section = page[page.index(f"## {name}\n") :].split("\n## ")[0]
        assert f"--run.drill {name}" in section
        for part in ("<summary>Hint", "<summary>Answer</summary>", "**In real systems:**"):
            assert part in section, f"{name} has no {part}"


@pytest.mark.parametrize("drill", LAYOUTS)
def test_without_the_drill_nothing_is_seen(
    drill: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bits as on one rank, replicas alike, bytes as predicted."""
    run = train(capsys, **LAYOUTS[drill])
    assert run.code == 0 and not run.err and "drill" not in run.out
    assert first_difference(run, right_run(train, capsys, LAYOUTS[drill])) == (None, None)
    assert run.deviating() == []


@pytest.mark.parametrize("drill", LAYOUTS)
def test_the_banner_says_so_and_not_where(drill: str) -> None:
    axes = {name.partition(".")[2]: size for name, size in LAYOUTS[drill].items()}
    healthy = resolve(Config(parallel=ParallelConfig(**axes)), {}, 4).config
    drilled = replace(healthy, run=replace(healthy.run, drill=drill))
    added = Counter(banner(drilled, []).splitlines()) - Counter(banner(healthy, []).splitlines())
    assert added == {f"  drill      {drill} is planted: this run is wrong on purpose": 1}


def test_call_sites_do_not_lead_to_the_drill(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run, healthy = (train(capsys, d, **LAYOUTS["swapped-shard"]) for d in ("swapped-shard", "none"))
    assert [call.site for call in run.calls(0)] == [call.site for call in healthy.calls(0)]


def test_a_run_that_goes_on_has_the_drill_until_it_is_taken_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = arguments(tmp_path / "run", "same-data", **LAYOUTS["same-data"], **{"run.keep": 1})
    goes_on = ["--collectives", "threads", "--run.dir", str(tmp_path / "run"), "--run.resume", "auto"]
    assert main(first) == 0 and "is planted" in capsys.readouterr().out
    assert main([*goes_on, "--train.steps", "5"]) == 0 and "is planted" in capsys.readouterr().out
    assert main([*goes_on, "--train.steps", "6", "--run.drill", "none"]) == 0
    out = capsys.readouterr().out
    assert "is planted" not in out and "run.drill is none, was same-data up to step 5" in out


@pytest.mark.parametrize("drill", LAYOUTS)
def test_the_least_that_a_drill_needs_is_enough(drill: str, capsys: pytest.CaptureFixture[str]) -> None:
    axes = LAYOUTS[drill] | ({"parallel.dp": 2} if "parallel.dp" in LAYOUTS[drill] else {})
    layout = [word for name, size in axes.items() for word in (f"--{name}", str(size))]
    command = ["--collectives", "threads", "--dry-run", "--train.steps", "3", "--run.drill", drill, *layout]
    assert main(command) == 0, capsys.readouterr().err


# --- one by one


def test_skipped_all_reduce(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS["skipped-all-reduce"]
    run = train(capsys, "skipped-all-reduce", **layout)
    assert run.code == 5 and re.search(
        r"error: rank 1 and rank 3 hold different bits of the parameter layers\.2\.attn\.o and 1 more, .*; "
        r"step 1, compared over dp; ",
        run.err,
    )
    unseen = train(capsys, "skipped-all-reduce", **layout, **{"run.compare_every": 0})
    assert unseen.code == 0 and unseen.deviating() == [1, 3]
    assert first_difference(unseen, right_run(train, capsys, layout)) == (2, 1)


def test_skipped_all_reduce_over_mpi(tmp_path: Path) -> None:
    over_mpi = LAYOUTS["skipped-all-reduce"] | {"collectives": "mpi"}
    run = run_minitrain(*arguments(tmp_path / "run", "skipped-all-reduce", **over_mpi), ranks=4)
    assert run.returncode == 5
    assert "rank 1 and rank 3 hold different bits of the parameter layers.2.attn.o and 1 more" in run.stderr


def test_partial_sum(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS["partial-sum"]
    run = train(capsys, "partial-sum", **layout)
    assert run.code == 5 and re.search(
        r"hold different bits of the parameter layers\.2\.attn\.norm, .*; step 2, compared over tp; ", run.err
    )
    unseen = train(capsys, "partial-sum", **layout, **{"run.compare_every": 0})
    healthy = train(capsys, **layout)
    assert unseen.code == 0 and unseen.deviating() == [2, 3]
    assert first_difference(unseen, right_run(train, capsys, layout)) == (3, 2)
    for rank in range(4):
        left_out = Counter(map(what_for, healthy.calls(rank))) - Counter(map(what_for, unseen.calls(rank)))
        micro_batches = 2 * 4  # of a rank, in 4 steps
        expected = {("tp", "all_reduce", "backward", "layers.2"): micro_batches} if rank > 1 else {}
        assert {what: n for what, n in left_out.items() if what[0] == "tp"} == expected


def what_for(call: CallOfRank) -> tuple[str, str, str, str]:
    return call.axis, call.verb, call.phase, call.part


def test_swapped_shard(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    saving = {"run.save_every": 1, "run.keep": 4}
    run = train(capsys, "swapped-shard", **LAYOUTS["swapped-shard"], **saving)
    right = train(capsys, **saving)
    assert run.code == 0 and run.deviating() == []
    assert first_difference(run, right) == (2, 2)
    wrong, weights = run.weights(1), right.weights(1)
    gate, up, down = (f"model.layers.2.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    assert [name for name in weights if not np.array_equal(wrong[name], weights[name])] == [gate, up, down]
    last, first = weights[gate].ravel()[2560:], weights[up].ravel()[:2560]
    assert np.array_equal(wrong[down].ravel(), np.concatenate([last, first]))


def test_swapped_shard_of_parameters_that_are_gathered_on_use(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZeRO 3: the first forward has wrong weights already."""
    layout = {"parallel.dp": 2, "parallel.zero": 3}
    run, right = train(capsys, "swapped-shard", **layout), train(capsys)
    assert run.code == 0 and first_difference(run, right)[0] == 1


def test_dropped_receive(tmp_path: Path) -> None:
    layout = LAYOUTS["dropped-receive"] | {"run.hang_seconds": 3, "run.check": "true"}
    run = run_minitrain(*arguments(tmp_path / "run", "dropped-receive", **layout), timeout=60)
    assert run.returncode == 75
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("minitrain: error:"))
    back = r"recv of 8192 float32 over pp from rank 1 to rank 0 \(message 12\)"
    on = r"recv of 8192 float32 over pp from rank 0 to rank 1 \(message 13\)"
    of_first = rf"rank 1 has not come to {back}, for which rank 0 waited \d+ s; rank 1: waiting in {on}; "
    of_last = rf"rank 0 has not come to {on}, for which rank 1 waited \d+ s; rank 0: waiting in {back}; "
    assert re.search(f"{of_first}|{of_last}", line)
    (path,) = (tmp_path / "run").glob("hang/*/hang-rank-1.json")
    calls = "\n".join(json.loads(path.read_text())["last"])
    messages = re.findall(r"^(recv|send) .* over pp .*\(message (\d+)\)", calls, flags=re.MULTILINE)
    in_a_row = [(a, b) for (verb, a), (other, b) in pairwise(messages) if verb == other]
    assert in_a_row == [("9", "10")], "of two messages that it took, the first was lost"


@pytest.mark.parametrize("precision, what", [
    ("fp32", "the parameter layers.2.mlp.gate"),
    ("bf16-pure", "the parameter layers.2.mlp.gate"),
    ("bf16", "the master copy of layers.2.mlp.gate"),
])  # fmt: skip
def test_flipped_bit(precision: str, what: str, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS["flipped-bit"] | {"precision": precision}
    run = train(capsys, "flipped-bit", **layout)
    assert run.code == 5 and f"rank 1 has other bits in {what} than ranks 0, 2-3; step 3, " in run.err


def test_flipped_bit_in_a_shard(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    layout = {"parallel.dp": 4, "parallel.zero": 3, "parallel.shard": 2}
    run = train(capsys, "flipped-bit", **layout)
    assert run.code == 5
    assert re.search(r"rank 1 and rank 3 hold different bits of the parameter layers\.2\.", run.err)
    assert "step 3, compared over replica" in run.err


def test_flipped_bit_is_not_seen_in_the_curve(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(capsys, "flipped-bit", **LAYOUTS["flipped-bit"], **{"run.compare_every": 0})
    right = train(capsys)
    assert first_difference(run, right) == (3, 3)
    assert np.allclose(run.curve("loss"), right.curve("loss"), rtol=1e-6, atol=0)


def test_straggler(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS["straggler"] | {"run.compare_every": 4}
    run = train(capsys, "straggler", **layout)
    assert run.code == 0 and re.search(r"^rank 2 is slow: it computes ", run.out, flags=re.MULTILINE)
    assert first_difference(run, right_run(train, capsys, layout)) == (None, None)
    in_calls = [sum(call.end - call.start for call in run.calls(rank)) for rank in range(4)]
    assert min(range(4), key=in_calls.__getitem__) == 2


def test_same_data(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run, right = train(capsys, "same-data", **LAYOUTS["same-data"]), train(capsys)
    assert run.code == 0 and run.deviating() == [] and first_difference(run, right) == (1, 1)
    half = train(capsys, **{"train.global_batch": 8})
    assert half.curve("loss")[0] == run.curve("loss")[0]


def test_sum_for_mean(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run, right = train(capsys, "sum-for-mean", **LAYOUTS["sum-for-mean"]), train(capsys)
    assert run.code == 0 and run.deviating() == [] and first_difference(run, right) == (2, 1)
    assert run.curve("grad_norm")[0] == 2 * right.curve("grad_norm")[0]
    four = train(capsys, "sum-for-mean", **{"parallel.dp": 4})
    assert four.curve("grad_norm")[0] == 4 * right.curve("grad_norm")[0]
