"""Every lecture holds on every number of ranks that is said to be possible, and its pages are whole: a claim,
arrays, checks, and where the common statement is loose.

A lecture checks itself what it says; here it is run, and what it cannot check of itself is.
"""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from launch import run_minitrain

from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.errors import InternalError
from minitrain.study import TOPICS
from minitrain.study.algorithms.ring_reduce_scatter import reduce_scatter
from minitrain.study.lecture import perform, present
from minitrain.study.lectures.collectives import parts
from minitrain.study.lectures.costs import ALGORITHMS, POWERS_OF_TWO, cost
from minitrain.study.lectures.pipeline import Event, Step, run_step
from minitrain.study.page import Counted, Page, close, gather, numbers

LECTURES = [name for name, topic in TOPICS.items() if "ranks" in topic.options]
QUICK = [(name, n) for name in LECTURES for n in TOPICS[name].sizes if name != "pipeline"]
LIMIT = 20.0


def told(capsys: pytest.CaptureFixture[str], topic: str, n: int) -> str:
    """What the lecture prints. A check of its own that fails is a failed assertion here."""
    try:
        TOPICS[topic].run(SingleComm(), ranks=n, all=True)
    except InternalError as error:
        raise AssertionError(str(error)) from None
    return capsys.readouterr().out


@pytest.mark.parametrize("topic, n", [*QUICK, ("pipeline", 2), ("pipeline", 3), ("pipeline", 4)])
def test_a_lecture_holds(topic: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, topic, n)
    assert text.splitlines()[0].endswith(f", on {n} ranks")
    assert text.count("\n-- ") >= 3, "steps"
    assert text.count("Checked: ") >= 2
    assert "Loosely one says " in text
    assert "rank 0" in text or "stage 0" in text
    assert not re.search(r"\bnan\b|-0\.00 ", text)


@pytest.mark.parametrize(
    "topic", [name for name in LECTURES if name not in ("pipeline", "combinations", "utilisation")]
)
def test_bytes_stand_beside_their_formula(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted messages, an equals sign, and the number that the formula gives."""
    text = " ".join(told(capsys, topic, 4).split())
    counted = re.findall(r"sent (\d+) bytes, counted; [^=]+ = (\d+)", text)
    counted += re.findall(r"(\d+) = \d+ \(n - 1\)/n x \d+", text) if topic == "zero" else []
    assert counted
    assert all(pair[0] == pair[1] for pair in counted if isinstance(pair, tuple))


def test_hops_show_what_moved(capsys: pytest.CaptureFixture[str]) -> None:
    """The first hop of the ring on 3 ranks, to the letter: slices go right, and are added."""
    text = told(capsys, "ring-all-reduce", 3)
    hop = text.partition("reduce-scatter, hop 1 ")[2].split("\n\n")[1].splitlines()
    assert [" ".join(line.split()) for line in hop] == [
        "sends adds then holds",
        "rank 0 slice 2 to rank 1 slice 1 from rank 2 1 [202] 3",
        "rank 1 slice 0 to rank 2 slice 2 from rank 0 10 20 [ 33]",
        "rank 2 slice 1 to rank 0 slice 0 from rank 1 [110] 200 300",
    ]
    assert "ranks 0-2  111 222 333" in text


def test_numbers_say_whose_parts_are_in_a_slice() -> None:
    """A sum over ranks has each slice's digit in the place of every rank, for as many ranks as are shown."""
    for n in (2, 8):
        total = sum(run_threads(n, parts))
        assert [f"{value:.0f}" for value in np.asarray(total)] == [str(c + 1) * n for c in range(n)]


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_counted_costs_are_the_textbooks(n: int) -> None:
    """Rounds, and bytes one after another, of a buffer."""
    log = (n - 1).bit_length()
    expected = {
        "tree-broadcast": (log, log),
        "broadcast, one rank after another": (n - 1, n - 1),
        "reduce-scatter": (n - 1, (n - 1) / n),
        "all-gather": (n - 1, (n - 1) / n),
        "ring-all-reduce": (2 * (n - 1), 2 * (n - 1) / n),
        "all-reduce, everyone to everyone": (n - 1, n - 1),
        "all-to-all": (n - 1, (n - 1) / n),
        "reduce-scatter, halving": (log, (n - 1) / n),
        "all-gather, doubling": (log, (n - 1) / n),
        "halving-doubling": (2 * log, 2 * (n - 1) / n),
    }
    assert set(expected) == set(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        if name not in POWERS_OF_TWO or n.bit_count() == 1:
            counted = run_threads(n, lambda comm, algorithm=algorithm: cost(comm, algorithm), LIMIT)[0]
            assert counted.rounds == expected[name][0], name
            assert counted.share == pytest.approx(expected[name][1], abs=1e-15), name


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_stages_keep_what_the_schedule_says(schedule: str) -> None:
    p, m = 3, 5
    step = run_threads(p, lambda comm: run_step(comm, schedule, m), LIMIT)[0]
    assert step.in_flight == ([m] * p if schedule == "gpipe" else [min(m, p - s) for s in range(p)])
    assert [kept // step.in_flight[s] for s, kept in enumerate(step.kept)] == p * [
        step.kept[-1] // step.in_flight[-1]
    ]
    for stage, events in enumerate(step.events):
        work = [(kind, micro) for kind in ("forward", "backward") for micro in range(m)]
        assert sorted((event.kind, event.micro) for event in events) == sorted(work)
        assert all(a.stop <= b.start for a, b in pairwise(events)), "two things at once"
        row = step.timeline(stage, 1000)
        assert set(row) <= set("01234abcde.") and {"0", "4", "a", "e"} <= set(row)


def test_no_stage_works_before_it_has_what_it_needs() -> None:
    """By the clock: a forward after that of the stage before, a backward after that of the stage behind."""
    step = run_threads(3, lambda comm: run_step(comm, "1f1b", 4), LIMIT)[0]
    at = {(e.kind, e.micro, s): e for s, events in enumerate(step.events) for e in events}
    for micro in range(4):
        for s in range(2):
            assert at["forward", micro, s].stop <= at["forward", micro, s + 1].start
            assert at["backward", micro, s + 1].stop <= at["backward", micro, s].start


def test_a_timeline_is_drawn_to_scale() -> None:
    events = [[Event("forward", 0, 1.0, 2.0), Event("backward", 0, 4.0, 6.0)],
              [Event("forward", 0, 2.0, 3.0), Event("backward", 0, 3.0, 5.0)]]  # fmt: skip
    step = Step(events, [1, 1], [8, 8])
    assert [step.timeline(stage, 5) for stage in range(2)] == ["0..aa", ".0aa."]
    assert (step.seconds, step.working) == (5.0, 3.0)


def test_a_check_that_fails_is_an_error_on_every_rank() -> None:
    def on_rank(comm: Comm) -> str:
        page = Page(comm)
        page.claim("A claim", "That all ranks are even.")
        try:
            page.check("rank is even", comm.rank % 2 == 0)
        except InternalError as error:
            assert error.known_everywhere
            assert all("Checked" not in screen for screen in page.screens)
            return str(error)
        return "nothing"

    error = "not true: rank is even; study, ranks 1, 3; this is a defect"
    assert run_threads(4, on_rank, LIMIT) == 4 * [error]


def test_a_formula_that_is_not_met_is_an_error() -> None:
    def on_rank(comm: Comm) -> None:
        page, counted = Page(comm), Counted(comm)
        page.claim("A claim", "")
        counted.comm.all_reduce(np.zeros(8))
        with pytest.raises(InternalError, match="not true: for it, every rank has sent 64 bytes"):
            page.sent("for it", counted.take(), "2(n - 1)/n of 64", 96)

    run_threads(2, on_rank, LIMIT)


def test_ranks_that_hold_the_same_share_a_row() -> None:
    def on_rank(comm: Comm) -> list[str]:
        page = Page(comm)
        page.claim("A claim", "text")
        page.ranks(x=np.array([[1.0, -2.5], [10.0, 0.0]]) if comm.rank % 2 else np.array([3.0]), what="so")
        return page.screens

    first, *others = run_threads(4, on_rank, LIMIT)
    assert others == [[], [], []], "one rank writes"
    assert first[0].split("\n\n")[-1].splitlines() == [
        "            x            what",
        "ranks 0, 2      3        so",
        "ranks 1, 3   1.00 -2.50  so",
        "            10.00  0.00",
    ]


def test_numbers() -> None:
    assert numbers(np.array([-0.001, 2.0])) == "0.00 2.00"
    assert numbers(np.array([-0.0, 12.0])) == " 0 12"
    assert close(np.ones(2), np.ones(2) * (1 + 1e-14)) and not close(np.ones(2), np.ones(2) * (1 + 1e-10))
    assert not close(np.ones(2), np.ones(1)) and close(np.zeros(2), np.zeros(2))


def test_texts_of_other_lengths_are_gathered() -> None:
    of_ranks = run_threads(3, lambda comm: gather(comm, "é" * 10 * comm.rank), LIMIT)
    assert [list(map(json.loads, texts)) for texts in of_ranks] == 3 * [["", "é" * 10, "é" * 20]]


def test_a_hop_that_is_left_out_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page that a student has broken shows the hops that there were, and nothing that is not so."""

    def short(comm: Comm, buffer: object, *rest: object) -> object:
        hops = reduce_scatter(comm, buffer, *rest)  # type: ignore[arg-type]
        for _ in range(comm.size - 2):
            yield next(hops)

    monkeypatch.setattr("minitrain.study.algorithms.ring_reduce_scatter.reduce_scatter", short)
    with pytest.raises(InternalError, match="not true: rank r has slice r"):
        TOPICS["reduce-scatter"].run(SingleComm(), ranks=4, all=True)
    shown = capsys.readouterr().out
    assert shown.count("\n-- hop ") == 2 and "Checked" not in shown


@pytest.mark.parametrize("pause", [False, True])
def test_a_reader_goes_on_with_enter(
    pause: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before every screen but the first; and when nobody types any more all the rest comes."""
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(capsys.readouterr().out)
        if len(asked) == 2:
            raise EOFError
        return ""

    monkeypatch.setattr("builtins.input", answer)
    present(["one", "two", "three", "four"], pause)
    rest = capsys.readouterr().out
    assert (asked, rest) == (
        (["one\n\n", "two\n\n"], "three\n\nfour\n\n") if pause else ([], "one\n\ntwo\n\nthree\n\nfour\n\n")
    )


@pytest.mark.parametrize("terminal, all_at_once, pauses", [
    (True, False, True), (True, True, False), (False, False, False),
])  # fmt: skip
def test_it_waits_on_a_terminal_only(
    terminal: bool, all_at_once: bool, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("minitrain.study.lecture.present", lambda screens, pause: shown.append(pause))
    perform(lambda page, comm: page.claim("A claim", "text"), SingleComm(), 2, all_at_once)
    assert shown == [pauses]


@pytest.mark.parametrize("topic, ranks", [
    ("ring-all-reduce", 2), ("ring-all-reduce", 4), ("tree-broadcast", 3), ("zero", 4), ("megatron-mlp", 2),
    ("recomputation", 2), ("combinations", 4), ("pipeline", 2), ("utilisation", 2),
])  # fmt: skip
def test_under_mpirun_it_is_the_same_page(topic: str, ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed once, by rank 0. Where times are measured they differ."""
    done = run_minitrain("study", topic, ranks=ranks)
    assert done.returncode == 0, done.stderr
    if topic in ("pipeline", "utilisation"):
        assert done.stdout.count(", on 2 ranks") == 1
        assert done.stdout.count("Checked: ") == 4
    else:
        assert done.stdout == told(capsys, topic, ranks)


def test_alone_study_lists_topics_in_the_order_of_the_subject() -> None:
    done = run_minitrain("study", ranks=2)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert (done.returncode, listed) == (0, list(TOPICS))
    order = ["optimizers", "formats", "precision", "recomputation", "reduce-scatter", "all-gather",
             "ring-all-reduce", "data-parallel", "pipeline", "split-matmul", "megatron-mlp", "combinations",
             "zero", "utilisation"]  # fmt: skip
    assert [name for name in listed if name in order] == order
