"""Checks minitrain on the first GPU of this machine, and then times it, in less than 9 minutes.

    kernels   the tests of tests/cuda with the GPU in the place of the emulator: every kernel against NumPy in
              fp64, whole steps in layouts, precisions and optimizers, NCCL with one rank
    runs      `python -m minitrain` on the GPU beside the CPU: precisions, ZeRO stages, ranks that share the
              GPU, resumption
    times     scripts/bench_gpu --short

All figures go to a folder; the table comes last. The exit code is 0 if all checks passed.
"""

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree
from datetime import date
from pathlib import Path
from typing import Any

from runs import Outcome, Runs

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "cupy-cuda13x",
    "cupy-cuda12x",
    "numpy",
    "ml_dtypes",
    "nvidia-nccl-cu13",
    "nvidia-cudnn-cu13",
    "torch",
)
MINUTES = 8.5  # for all of it
LIMITS = {"kernels": 240.0, "runs": 180.0, "times": 120.0}  # seconds, of what is left


def about_machine() -> dict[str, Any]:
    """What the figures depend on."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {
        "date": date.today().isoformat(),
        "card": properties["name"].decode(),
        "memory_GiB": round(properties["totalGlobalMem"] / 2**30),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "python": platform.python_version(),
        **versions,
    }


def check_kernels(folder: Path, limit: float) -> list[Outcome]:
    """One line for each file of tests."""
    report = folder / "kernels.xml"
    command = [sys.executable, "-m", "pytest", "--gpu", "-q", f"--junitxml={report}", "tests/cuda"]
    with (folder / "kernels.txt").open("w") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return [Outcome("kernels", f"not done after {limit:.0f} s")]
    return outcomes_of(report)


def outcomes_of(report: Path) -> list[Outcome]:
    """Of a JUnit report."""
    if not report.exists():
        return [Outcome("kernels", "pytest wrote no report: see kernels.txt")]
    files: dict[str, list[Any]] = {}
    for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2].removeprefix("test_") or case.get("name", "")
        files.setdefault(name, []).append(case)
    return [outcome_of(name, cases) for name, cases in sorted(files.items())] or [
        Outcome("kernels", "no test ran: see kernels.txt")
    ]


def outcome_of(name: str, cases: list[Any]) -> Outcome:
    """Of the tests of a file."""

    def count(*kinds: str) -> list[Any]:
        return [case for case in cases if any(case.find(kind) is not None for kind in kinds)]

    failed, n_skipped = count("failure", "error"), len(count("skipped"))
    if failed:
        names = ", ".join(str(case.get("name")) for case in failed[:3])
        return Outcome(name, f"{len(failed)} of {len(cases)} failed: {names}")
    return Outcome(name, "", f"{len(cases) - n_skipped} passed" + f", {n_skipped} skipped" * bool(n_skipped))


def table(outcomes: list[Outcome]) -> list[str]:
    width = max(len(outcome.name) for outcome in outcomes)
    return [f"{o.name.ljust(width)}  {verdict(o)}" for o in outcomes]


def verdict(outcome: Outcome) -> str:
    return (
        f"FAILED  {outcome.problem.splitlines()[0][:160]}"
        if outcome.problem
        else f"ok      {outcome.measured}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for all figures")
    folder = parser.parse_args().out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        about = about_machine()
    except Exception as problem:  # of CuPy's many kinds
        print(f"scripts/gpu_check: no GPU can be used: {problem}", file=sys.stderr)
        return 1
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    start = time.perf_counter()

    def limit(part: str) -> float:
        return min(LIMITS[part], 60 * MINUTES - (time.perf_counter() - start))

    outcomes = check_kernels(folder, limit("kernels"))
    seconds = {"kernels": time.perf_counter() - start}
    for outcome in Runs(folder / "runs").all(limit("runs")):
        outcomes.append(outcome)
        print(*table([outcome]), flush=True)
    seconds["runs"] = time.perf_counter() - start - seconds["kernels"]
    for_times = limit("times")
    bench = [str(ROOT / "scripts" / "bench_gpu"), "--short", "--json", str(folder / "times.json")]
    try:
        done = subprocess.run(bench, capture_output=True, text=True, timeout=for_times, check=False)
        times = done.stdout if done.returncode == 0 else done.stdout + done.stderr[-2000:]
    except subprocess.TimeoutExpired as problem:
        times = f"not done after {for_times:.0f} s\n{(problem.stdout or b'').decode(errors='replace')}"
    record = {"machine": about, "seconds": seconds, "checks": [outcome._asdict() for outcome in outcomes]}
    (folder / "checks.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "times.txt").write_text(times)
    print(times, *table(outcomes), sep="\n")
    n_failed = sum(bool(outcome.problem) for outcome in outcomes)
    print(f"{len(outcomes) - n_failed} ok, {n_failed} failed; {folder}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
