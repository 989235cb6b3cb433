"""Training steps of minitrain beside PyTorch's, on one GPU: same models, weights and data, bf16, AdamW.

One contender after the other, each in a process of its own. Those whose first losses differ by more than
rounding does (agreement.py) are not compared: then nothing is reported of that model.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from agreement import bounds, disagreement
from contender import Plan
from figures import EXPLANATION, NAMES, add_rates, add_ratios, breakdown, matrix_parameters, table
from one_contender import Task
from problems import PROBLEMS

from minitrain.config import Config

WORKER = Path(__file__).with_name("one_contender.py")
OF_ITSELF = {"backend", "collectives", "gemm"}  # settings of minitrain that the comparison has itself
LAST_LINES = 8  # of what a worker wrote before it ended
LONG, SHORT = Plan(warmup=5, steps=10, rounds=5), Plan(warmup=2, steps=5, rounds=3)
LONG_LIMIT, SHORT_LIMIT = 300.0, 60.0  # seconds of a contender


def run(task: Task, limit: float) -> dict[str, Any]:
    """What became of a contender: "status" done, out of memory, failed, or too slow."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "found.json", Path(folder) / "log"
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [sys.executable, str(WORKER), task.write(), str(file)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                code, status = worker.wait(limit), "failed"
            except subprocess.TimeoutExpired:
                code, status = 1, f"not done in {limit:.0f} s"
            finally:
                worker.kill()
                worker.wait()
        about = {"model": task.model, "who": task.who}
        last = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        if not file.exists():
            return about | {"status": status, "message": "\n".join([f"exit code {code}", *last])}
        found = json.loads(file.read_text())
        if code:  # later than what it reported
            found["breakdown_message"] = "\n".join([status, *last])
        return about | found


def judge(records: Sequence[dict[str, Any]], allowed: Any) -> str:
    """Why the contenders that are done cannot be compared; empty if they can."""
    done = [r for r in records if r["status"] == "done"]
    for other in done[1:]:
        pair = [(r["losses"], r["norms"]) for r in (done[0], other)]
        if differs := disagreement(pair[0], pair[1], allowed):
            return f"{NAMES[done[0]['who']]} and {NAMES[other['who']]}: {differs}"
    return ""


def compare(
    name: str, contenders: Sequence[str], arguments: argparse.Namespace, ceiling: float | None
) -> list[dict[str, Any]]:
    """A record for each contender, in order."""
    problem = PROBLEMS[name]
    problem = problem._replace(
        micro_batch=arguments.micro_batch or problem.micro_batch,
        micro_batches=arguments.micro_batches or problem.micro_batches,
    )
    records = []
    for who in contenders:
        print(f"{name}: {NAMES[who]} ...", file=sys.stderr, flush=True)
        task = Task(
            who, name, problem.micro_batch, problem.micro_batches, arguments.plan, arguments.breakdown,
            arguments.gemm, arguments.settings,
        )  # fmt: skip
        records.append(run(task, arguments.limit))
    reason = judge(records, bounds(problem))
    for i, r in enumerate(records):
        if reason and r["status"] == "done":
            kept = {key: r[key] for key in ("model", "who", "losses", "norms")}
            records[i] = kept | {"status": "not compared", "message": reason}
        elif r["status"] == "done":
            add_rates(r, problem, ceiling)
        records[i] |= {"micro_batch": problem.micro_batch, "micro_batches": problem.micro_batches}
    add_ratios(records)
    return records


def about_model(name: str, record: dict[str, Any]) -> str:
    model = PROBLEMS[name].model
    return (
        f"{name}: {model.layers} x {model.width}, {model.heads} heads, {model.kv_heads} kv heads, "
        f"ffn {model.ffn}, vocabulary {model.vocab}, T {model.seq_len}, "
        f"N {matrix_parameters(model) / 1e6:.1f} M, "
        f"{record['micro_batches']} micro-batches of {record['micro_batch']}"
    )


def show(records: Sequence[dict[str, Any]]) -> None:
    """Of one model."""
    print("\n" + about_model(records[0]["model"], records[0]))
    print("\n".join(table(records)), flush=True)
    for r in records:
        if r["status"] == "done" and r["who"] == "minitrain":
            print(f"attention: {r['attention']}; losses: {losses(records)}")
            if "breakdown" in r:
                print("one step of minitrain, by kernel:")
                print("\n".join(breakdown(r["breakdown"])), flush=True)
            if "breakdown_message" in r:
                print(f"no breakdown: {r['breakdown_message']}", flush=True)


def losses(records: Sequence[dict[str, Any]]) -> str:
    found = (
        f"{NAMES[r['who']]} " + " ".join(f"{loss:.5f}" for loss in r["losses"])
        for r in records
        if "losses" in r
    )
    return ", ".join(found)


def versions() -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("torch", "cupy-cuda13x", "numpy", "nvidia-cublas", "nvidia-cudnn-cu13"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_gpu", description=__doc__)
    add, names = parser.add_argument, {"type": lambda text: text.split(",")}
    add("--models", **names, help=f"of {','.join(PROBLEMS)} (default: all)")
    add("--contenders", **names, help=f"of {','.join(NAMES)} (default: all)")
    add("--steps", type=int, help=f"of a round that is timed (default: {LONG.steps})")
    add("--rounds", type=int, help=f"(default: {LONG.rounds})")
    add("--micro-batch", type=int, help="sequences (default: of each model its own)")
    add("--micro-batches", type=int, help="of a step (default: 2)")
    add("--gemm", choices=("cublaslt", "gemmex"), default="cublaslt", help="minitrain's (default: cublaslt)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of minitrain")
    add("--no-breakdown", dest="breakdown", action="store_false", help="no table of kernels")
    add("--limit", type=float, help=f"seconds of a contender (default: {LONG_LIMIT:.0f})")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--short", action="store_true", help="about a minute: gpt2-124M, without torch.compile, few steps")
    arguments = parser.parse_args(argv)
    short = arguments.short
    plan = SHORT if short else LONG
    arguments.plan = plan._replace(
        steps=plan.steps if arguments.steps is None else arguments.steps,
        rounds=plan.rounds if arguments.rounds is None else arguments.rounds,
    )
    arguments.models = arguments.models or [*PROBLEMS][: 1 if short else None]
    arguments.contenders = arguments.contenders or [*NAMES][: 2 if short else None]
    arguments.limit = arguments.limit or (SHORT_LIMIT if short else LONG_LIMIT)
    for given, known in ((arguments.models, PROBLEMS), (arguments.contenders, NAMES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    counts = (*arguments.plan, arguments.micro_batch, arguments.micro_batches)
    if any(n is not None and n < 1 for n in counts):
        parser.error("--steps, --rounds, --micro-batch, --micro-batches: at least 1")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    arguments.settings = {"precision": "bf16"}
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        if name not in {field.name for field in fields(Config) if isinstance(field.default, str)} - OF_ITSELF:
            parser.error(f"--set {setting}: no setting of minitrain for this")
        arguments.settings[name] = value
    return arguments


def main() -> int:
    arguments = parse()
    about = versions()
    top = run(Task("ceiling", "", 0, 0, arguments.plan, False, arguments.gemm, {}), arguments.limit)
    about |= {"card": top.get("card"), "ceiling": top.get("flops")}
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "ceiling"))
    if about["ceiling"]:
        print(
            f"a product of 8192^3 in bf16 by {arguments.gemm}: {about['ceiling'] / 1e12:.0f} TFLOP/s",
            flush=True,
        )
    else:
        print(f"no product of 8192^3: {top['message']}", flush=True)
    records: list[dict[str, Any]] = []
    for name in arguments.models:
        of_model = compare(name, arguments.contenders, arguments, about["ceiling"])
        records += of_model
        show(of_model)
        if arguments.json:
            arguments.json.write_text(json.dumps({"machine": about, "results": records}, indent=2) + "\n")
    print("\n" + EXPLANATION)
    fine = about["ceiling"] and all(r["status"] in ("done", "out of memory") for r in records)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
