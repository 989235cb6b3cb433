"""What the lectures on whole steps show, held to forms of the textbook, and the tools that they look with."""

import gc
import re

import numpy as np
import pytest

from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Call
from minitrain.model.spec import block_specs
from minitrain.observe.timeline import AFTER, CallMade, Purpose, Timeline, Work
from minitrain.ops.table import Ops
from minitrain.study import TOPICS
from minitrain.study.lectures import recomputation, utilisation
from minitrain.study.lectures.small import random_weights
from minitrain.study.lectures.utilisation import Span
from minitrain.study.listening import NAMES, Products, listening
from minitrain.study.living import Living

LIMIT = 20.0


def told(capsys: pytest.CaptureFixture[str], topic: str, n: int) -> str:
    TOPICS[topic].run(SingleComm(), ranks=n, all=True)
    return capsys.readouterr().out


def table_of(text: str, step: str) -> list[list[str]]:
    """The words of the first table of a screen, row by row."""
    screen = text.partition(f"-- {step}")[2]
    return [line.split() for line in screen.split("\n\n")[1].splitlines()]


def test_what_is_kept_is_as_long_as_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """8 bytes a number, of an array kept by any of the three."""
    rows = table_of(told(capsys, "recomputation", 3), "what a block keeps")[1:-1]
    for name, *shape, none, selective, full in rows:
        expected = str(8 * np.prod([int(word) for word in shape if word != "x"]))
        assert {none, selective, full} - {"-"} == {expected}, name
    kept = {name: cells[-3:] for name, *cells in rows}
    assert [name for name, cells in kept.items() if cells[2] != "-"] == ["x_SD"]
    dropped = [name for name, (none, selective, _) in kept.items() if none != "-" and selective == "-"]
    assert dropped == ["attention.core.exps.0", "attention.core.r_BGRT"]


def test_the_hill_grows_with_depth_and_full_recomputation_does_so_by_an_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two blocks more: at its highest it is two blocks higher, or two inputs."""

    def highest(mode: str) -> int:
        def on_rank(comm: Comm) -> int:
            config = recomputation.configured(comm.size, mode)
            visits = recomputation.there_and_back(recomputation.make_stage(comm, config), config)
            return max(visit.most for visit in visits)

        most = set(run_threads(2, on_rank, LIMIT))
        assert len(most) == 1
        return most.pop()

    four = {mode: highest(mode) for mode in recomputation.MODES}
    monkeypatch.setattr(recomputation, "LAYERS", 6)
    grown = {mode: highest(mode) - four[mode] for mode in recomputation.MODES}
    assert grown == {"none": 2 * 1504, "selective": 2 * 1344, "full": 2 * 128}


@pytest.mark.parametrize("n", [2, 6])
def test_layouts_of_one_axis_send_what_the_textbook_says(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of L = n blocks, m = n micro-batches of 4 positions, width 2 n: bytes of fp64."""
    text = told(capsys, "combinations", n)
    sent, kept = (table_of(text, step)[1:] for step in ("the same step", "what a rank keeps"))
    of_layout = {tuple(map(int, row[:4])): [int(word) for word in row[-4:]] for row in sent}
    held = {tuple(map(int, row[:4])): [int(word) for word in row[-4:]] for row in kept}
    layouts = {(d, p, t) for d in range(1, 9) for p in range(1, 9) for t in range(1, 9) if d * p * t == n}
    assert {layout[:3] for layout in of_layout} == layouts and len(of_layout) == len(layouts) + 1

    def ring(n_bytes: int) -> int:
        return -(-2 * (n - 1) * n_bytes // n)

    rows, one, parameters = 4 * 2 * n * 8, ring(8), held[n, 1, 1, 0][0]
    loss = n * (ring(4 * 8) + ring(2 * 4 * 8))
    assert of_layout[1, 1, n, 0] == [(4 * n + 2) * n * ring(rows) + loss + one, 0, 0, one]
    assert of_layout[1, n, 1, 0] == [0, (2 if n > 2 else 1) * n * rows + 2 * one, 0, one]
    data = of_layout[n, 1, 1, 0]
    assert data[:2] == [0, 0] and 0 <= data[2] - one - 2 * (n - 1) * parameters / n < n + 2  # rounded up
    assert of_layout[n, 1, 1, 1][2] == pytest.approx(data[2] + one, abs=16 * (n + 2))  # shards are padded
    assert held[n, 1, 1, 0][2] == 2 * parameters and held[n, 1, 1, 1][2] >= 2 * parameters / n


def piece(phase: str, start: float, end: float) -> Work:
    return Work(Purpose(2, phase, 0, ""), start, end)


def call(axis: str, phase: str, start: float, end: float) -> CallMade:
    made = Call("all_reduce", axis, (0, 1), 1)
    return CallMade(0, made, 8, 8, Purpose(2, phase, 0, ""), "", start, end)


def test_seconds_are_shared_out() -> None:
    timeline = Timeline()
    timeline.work = [piece("load", 1, 2), piece("forward", 2, 6), piece("loss", 6, 8),
                     piece("recv_grad", 8, 11), piece("backward", 11, 15), piece(AFTER, 15, 19)]  # fmt: skip
    timeline.calls = [call("tp", "forward", 3, 5), call("pp", "recv_grad", 8.5, 10.5),
                      call("replica", AFTER, 15, 16), call("dp", AFTER, 16, 16.5)]  # fmt: skip
    span = Span(0.5, 20, timeline)
    assert span.parts() == {
        **{"forward": 3, "loss": 2, "backward": 4, "update": 2.5},
        **{"tp": 2, "pp": 2, "data": 1.5, "world": 0, "rest": 2.5},
    }
    assert sum(span.parts().values()) == span.seconds and span.is_in_order()
    assert span.strip(39) == ".ffff" + "tttt" + "ff" + "llll" + "." + "pppp" + "." + "bbbbbbbb" + "ddduuuuu.."


@pytest.mark.parametrize("spoil", [
    lambda t: t.calls.append(call("tp", "backward", 2, 3)),  # in the work of another phase
    lambda t: t.calls.append(call("tp", "forward", 3.5, 4.5)),  # beyond its work
    lambda t: t.work.append(piece("loss", 3, 5)),  # two things at once
    lambda t: t.work.append(piece("loss", 5, 7)),  # after the end
])  # fmt: skip
def test_what_is_not_in_order_is_seen(spoil) -> None:
    timeline = Timeline()
    timeline.work = [piece("forward", 1, 4)]
    timeline.calls = [call("tp", "forward", 2, 3)]
    assert Span(0, 6, timeline).is_in_order()
    spoil(timeline)
    assert not Span(0, 6, timeline).is_in_order()


def test_a_listener_hears_of_this_table_only_and_for_a_time() -> None:
    ops, other, heard = Ops(), Ops(), []
    x_NI, w_OI = np.ones((2, 3)), np.ones((4, 3))
    with listening(ops, lambda name, operands, result: heard.append((name, result.shape))):
        ops.linear_forward(x_NI, w_OI)
        other.linear_forward(x_NI, w_OI)
    ops.linear_forward(x_NI, w_OI)
    assert heard == [("linear_forward", (2, 4))]
    assert not vars(ops) and "attention_backward" in NAMES


def test_products_are_counted_by_their_shapes() -> None:
    """2 N I O forward and twice that back; of attention 2 products forward and 4 back, over T^2 scores."""
    ops, products = Ops(), Products()
    x_NI, w_OI = np.ones((2, 3)), np.ones((4, 3))
    q_BTHK = np.ones((2, 5, 3, 4))
    with listening(ops, products):
        ops.linear_backward(ops.linear_forward(x_NI, w_OI), x_NI, w_OI, np.zeros_like(w_OI))
        o_BTHK, saved = ops.attention_forward(q_BTHK, q_BTHK, q_BTHK)
        ops.attention_backward(o_BTHK, saved)
    assert products.of_matrices == 6 * 2 * 3 * 4
    assert products.of_attention == (2 + 4) * 2 * (2 * 3 * 5 * 5 * 4)


def test_what_is_freed_is_alive_no_more_and_views_count_once() -> None:
    gc.collect()
    living, ops = Living(SingleComm()), Ops()
    with listening(ops, living):
        y_NO = ops.linear_forward(np.ones((2, 3)), np.ones((4, 3)))
        assert living.bytes() == y_NO.nbytes == 64
        view = y_NO.reshape(4, 2)
        living("again", (), (view, [y_NO[:1]]))
        del y_NO
        assert living.bytes() == 64, "the view holds it"
        with living.visit("forward 0"):
            ops.linear_forward(np.ones((2, 3)), np.ones((2, 3)))
            ops.linear_forward(np.ones((1, 3)), np.ones((1, 3)))
        del view
    assert living.bytes() == 0
    assert living.visits == [("forward 0", 64, 64 + 32)]


def test_the_peak_is_two_operations_for_each_element_of_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0, 4, 10, 12, 20, 23, 30, 34, 40, 44])  # 2 at best
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: next(seconds))
    assert utilisation.peak(SingleComm()) == 2 * 512**3 / 2


def test_no_weight_is_zero() -> None:
    for spec in block_specs(utilisation.configured(2, "none").model, 0):
        assert np.all(random_weights(spec, tuple(slice(0, n) for n in spec.shape))), spec.name


def test_utilisation_is_of_the_step_that_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Operations / (seconds x ranks x peak), as far as digits are shown."""
    page = told(capsys, "utilisation", 2)
    text = " ".join(page.split())
    peak = float(re.findall(r"reaches ([\d.]+) GFLOP/s", text)[0]) * 1e9
    seconds = float(re.findall(r"seconds ([\d.]+)", text)[0])
    steps = [float(row[-1]) / 1e3 for row in table_of(page, "where the seconds went")[1:]]
    assert len(steps) == 2 and abs(max(steps) - seconds) <= 6e-5
    for name, operations in (("MFU, 6N", 1_412_825_088), ("HFU, all that was done", 1_610_612_736)):
        shown = float(re.findall(rf"{name} ([\d.]+)%", text)[0]) / 100
        expected = operations / (seconds * 2 * peak)
        assert abs(shown - expected) <= 6e-5 + 0.01 * expected, name
