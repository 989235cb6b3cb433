"""Calls that do not end, launchers that die, ranks that are slow or run another program: what is told, and
that the job ends, all of it.
"""

import json
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from comm.fake_device import LateDevice, device_array
from launch import REPOSITORY, run, run_python, under_mpirun

from minitrain.comm.device import DeviceWorld
from minitrain.comm.interface import Comm
from minitrain.comm.staged import Staging
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.comm.traced import ByteCounter, Call, traced
from minitrain.watch.calls import KEPT, CallLog, Channel, channel
from minitrain.watch.dump import look, to_dump
from minitrain.watch.hang import Dump, explain
from minitrain.watch.pace import Pace, slowest
from minitrain.watch.watchdog import Watchdog

LIMIT = 60.0
SMALL = "--train.steps 6 --model.width 32 --data.holdout 0.001 --run.sample_tokens 0 --run.export_hf false"


# --- what a rank remembers


class Heard:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, call: Call) -> None:
        self.told.append(f"{call.verb} {call.axis} {call.ranks} {call.number} {call.elements}")

    def end(self) -> None:
        self.told.append("end")


def test_a_watch_is_told_of_both_ends_of_every_call() -> None:
    def rank_main(world: ThreadComm) -> list[str]:
        heard = Heard()
        comm = traced(world, lambda event: None, heard)
        line = comm.cart((2, 2)).sub((False, True), "line")
        comm.split(0, "all")
        line.all_reduce(np.zeros(3))
        comm.all_gather(np.zeros(0), np.zeros(0))  # nothing moves, but ranks wait for each other
        comm.barrier()
        handle = comm.start_send(np.zeros(5), (comm.rank + 1) % 4)
        comm.recv(np.zeros(5), (comm.rank - 1) % 4)
        handle.wait()
        return heard.told

    told = run_threads(4, rank_main, LIMIT)[3]
    assert told[1::2] == ["end"] * (len(told) // 2)
    world = "(0, 1, 2, 3)"
    assert told[::2] == [
        f"cart world {world} 1 0",
        f"sub world {world} 2 0",
        f"split world {world} 3 0",
        "all_reduce line (2, 3) 1 3",
        f"all_gather world {world} 4 0",
        f"barrier world {world} 5 0",
        "send world (3, 0) 1 5",
        "recv world (2, 3) 1 5",
        "wait world (3, 0) 1 5",
    ]


def test_a_call_that_raises_has_ended() -> None:
    calls = CallLog()

    def rank_main(world: Comm) -> None:
        comm = traced(world, ByteCounter(), calls if world.rank == 0 else Heard())
        with pytest.raises(AssertionError):
            comm.all_reduce(np.zeros(2 + world.rank))

    run_threads(2, rank_main, LIMIT)
    assert calls.pending is None and [call.verb for call, _ in calls.last] == ["all_reduce"]


def test_the_last_calls_are_kept_and_time_in_them_is_added_up() -> None:
    calls = CallLog()
    for number in range(1, 61):
        calls.begin(Call("barrier", "dp", (0, 1), number))
        time.sleep(0.001)
        calls.end()
    assert [call.number for call, _ in calls.last] == list(range(61 - KEPT, 61))
    assert calls.begun == {(False, "dp", (0, 1)): 60}
    assert calls.inside >= sum(seconds for _, seconds in calls.last) >= 0.001 * KEPT


def test_another_thread_sees_where_a_rank_is() -> None:
    inside, leave = threading.Event(), threading.Event()
    logs: list[CallLog] = []

    def rank_main() -> None:
        logs.append(CallLog())
        logs[0].begin(Call("all_reduce", "tp", (0, 1), 5, "float32", 64))
        inside.set()
        leave.wait()

    thread = threading.Thread(target=rank_main, name="a rank")
    thread.start()
    inside.wait()
    entry = json.loads(json.dumps(look(1, logs[0])))
    leave.set()
    thread.join()
    assert entry["place"].startswith("threading.py:") and any(
        "rank_main" in x for x in entry["stacks"]["a rank"]
    )
    dump = to_dump(entry)
    assert dump.pending == Call("all_reduce", "tp", (0, 1), 5, "float32", 64)
    assert dump.begun == {(False, "tp", (0, 1)): 5} and 0 <= dump.seconds < 60
    assert to_dump(look(1, logs[0])).place == "its end"


# --- what is made of it


def dump(
    pending: Call | None, seconds: float = 0.0, place: str = "minitrain/step.py:1 in f", **begun: int
) -> Dump:
    """`begun` by axis, of the group of all four ranks."""
    numbers: dict[Channel, int] = {(False, axis, (0, 1, 2, 3)): number for axis, number in begun.items()}
    if pending:
        numbers[channel(pending)] = pending.number
    return Dump(pending, seconds, numbers, place)


def reduce_over(axis: str, number: int) -> Call:
    return Call("all_reduce", axis, (0, 1, 2, 3), number, "float32", 4096)


def told(dumps: dict[int, Dump]) -> str:
    return str(explain(dumps, "restart"))


def test_a_rank_that_did_not_come() -> None:
    call = reduce_over("dp", 57)
    dumps = {0: dump(call, 31), 1: dump(None, dp=56, place="minitrain/data/loader.py:40 in batch")}
    assert told(dumps | {2: dump(call, 30), 3: dump(call, 29.6)}) == (
        "rank 1 has not come to all_reduce of 4096 float32 over dp (call 57), "
        "for which ranks 0, 2-3 waited 31 s; "
        "rank 1: at minitrain/data/loader.py:40 in batch; restart"
    )


def test_a_rank_that_does_not_answer() -> None:
    call = reduce_over("dp", 57)
    assert told({rank: dump(call, 9) for rank in (0, 1, 3)}).split("; ")[:2] == [
        "rank 2 has not come to all_reduce of 4096 float32 over dp (call 57), "
        "for which ranks 0-1, 3 waited 9 s",
        "rank 2: no sign of life",
    ]


def test_who_waits_for_one_that_waits_is_not_to_blame() -> None:
    """Rank 3 computes; 2 waits for its message; 0 and 1 wait for 2, longest of all."""
    recv = Call("recv", "pp", (3, 2), 4, "float32", 64)
    waiting = {0: dump(reduce_over("world", 9), 20), 1: dump(reduce_over("world", 9), 20)}
    assert told(waiting | {2: dump(recv, 11, world=8), 3: dump(None, world=8)}) == (
        "rank 3 has not come to recv of 64 float32 over pp from rank 3 to rank 2 (message 4), "
        "for which rank 2 waited 11 s; rank 3: at minitrain/step.py:1 in f; restart"
    )


def test_ranks_that_wait_for_each_other() -> None:
    sends = {
        0: Call("wait", "pp", (0, 1), 7, "float32", 64),
        1: Call("wait", "pp", (1, 0), 7, "float32", 64),
    }
    assert told({rank: dump(call, 5 + rank) for rank, call in sends.items()}) == (
        "rank 0 has not come to the end of send of 64 float32 over pp from rank 1 to rank 0 (message 7), "
        "for which rank 1 waited 6 s; "
        "rank 0: waiting in the end of send of 64 float32 over pp from rank 0 to rank 1 (message 7); restart"
    )


def test_a_rank_that_came_and_went_is_not_missing() -> None:
    """The root of a broadcast need not wait for anybody; here it is in the next call already."""
    first, second = Call("broadcast", "dp", (0, 1, 2, 3), 3), Call("barrier", "dp", (0, 1, 2, 3), 4)
    message = told({0: dump(second, 9), 1: dump(first, 10), 2: dump(first, 10), 3: dump(None, dp=2)})
    assert message.startswith(
        "rank 3 has not come to broadcast over dp (call 3), for which ranks 1-2 waited 10 s"
    )


def test_all_have_come() -> None:
    message = told({rank: dump(reduce_over("tp", 2), 8) for rank in range(4)})
    assert message.startswith(
        "all_reduce of 4096 float32 over tp (call 2) does not end, though all have come"
    )


def test_a_thousand_ranks_are_one_readable_line() -> None:
    group = tuple(range(1000))
    call = Call("all_reduce", "dp", group, 2, "float32", 64)
    absent = {rank: Dump(None, 0.0, {}, f"minitrain/step.py:{rank} in f") for rank in range(0, 1000, 100)}
    message = told({rank: Dump(call, 9.0, {channel(call): 2}, "") for rank in group} | absent)
    assert len(message) < 600 and "6 more ranks" in message


# --- when it is a hang


def make_watchdog(calls: CallLog, directory: Path, limit: float) -> Watchdog:
    class World(Heard):
        rank, size = 0, 2

    return Watchdog(World(), calls, directory, limit, None)  # type: ignore[arg-type]


def test_time_counts_within_one_call_only(tmp_path: Path) -> None:
    calls = CallLog()
    dog = make_watchdog(calls, tmp_path / "hang", 1.0)  # looks every 0.1 s
    for _ in range(3):
        time.sleep(0.05)
        assert dog._waits() == 0, "computing is not waiting"
    for _ in range(6):
        calls.begin(Call("barrier", "dp", (0, 1), 1))
        dog._waits()
        time.sleep(0.05)
        assert 0.04 < dog._waits() < 0.21, "each call has its own time"
        calls.end()


def test_time_in_which_the_process_itself_stood_still_does_not_count(tmp_path: Path) -> None:
    calls = CallLog()
    dog = make_watchdog(calls, tmp_path / "hang", 1.0)
    calls.begin(Call("barrier", "dp", (0, 1), 1))
    dog._waits()
    dog._looked -= 1000
    assert dog._waits() <= 0.2


# --- calls that a GPU has not done


class FakeGpu:
    """Does what it is told up to a place."""

    def __init__(self) -> None:
        self.enqueued, self.done = 0, 0

    def mark(self) -> "FakeMark":
        self.enqueued += 1
        return FakeMark(self, self.enqueued)

    def check(self) -> None:
        pass


class FakeMark(NamedTuple):
    gpu: FakeGpu
    place: int

    def passed(self) -> bool:
        return self.place <= self.gpu.done


def on_gpu(number: int, on_device: bool = True) -> Call:
    return Call("all_reduce", "dp", (0, 1), number, "float32", 64, on_device)


def unended(calls: CallLog) -> Call | None:
    pending = calls.unended()
    return pending.call if pending else None


def test_a_call_has_ended_when_the_gpu_has_done_it() -> None:
    calls, gpu = CallLog(), FakeGpu()
    calls.gpu = gpu
    for call in (on_gpu(1), on_gpu(2, on_device=False), on_gpu(3)):
        calls.begin(call)
        calls.end()
    assert gpu.enqueued == 2, "a call on the host's arrays is done"
    barrier = Call("barrier", "world", (0, 1), 1)
    calls.begin(barrier)
    assert unended(calls) == on_gpu(1)
    gpu.done = 1
    assert unended(calls) == on_gpu(3)
    gpu.done = 2
    assert unended(calls) == barrier
    calls.end()
    assert unended(calls) is None


def test_calls_that_are_done_are_forgotten() -> None:
    calls, gpu = CallLog(), FakeGpu()
    calls.gpu = gpu
    for number in range(1, 1001):
        calls.begin(on_gpu(number))
        calls.end()
        gpu.done = gpu.enqueued - 3
    assert len(calls._enqueued) <= 5


def test_a_gpu_that_fails_does_not_hide_why() -> None:
    """Then marks cannot be made either; what is told is the error of the call."""

    class Broken(FakeGpu):
        def mark(self) -> FakeMark:
            raise RuntimeError("illegal address")

    calls = CallLog()
    calls.gpu = Broken()
    calls.begin(on_gpu(1))
    calls.end()
    assert unended(calls) is None


def test_arrays_of_a_device_are_told_apart_from_the_hosts() -> None:
    heard: list[Call] = []

    class Listening(Heard):
        def begin(self, call: Call) -> None:
            heard.append(call)

    def rank_main(world: ThreadComm) -> None:
        watch = Listening() if world.rank == 0 else Heard()
        comm = traced(DeviceWorld(world, Staging(LateDevice()).connect), ByteCounter(), watch)
        comm.all_reduce(device_array(1, 2))
        comm.all_reduce(np.ones(2))
        handle = comm.start_send(device_array(1), 1 - comm.rank)
        comm.recv(device_array(1), 1 - comm.rank)
        handle.wait()
        comm.barrier()

    run_threads(2, rank_main, LIMIT)
    assert [(call.verb, call.on_device) for call in heard] == [
        ("all_reduce", True), ("all_reduce", False), ("send", True), ("recv", True), ("wait", True),
        ("barrier", False),
    ]  # fmt: skip


def test_waiting_for_a_gpu_is_waiting_in_the_call_that_it_has_not_done(tmp_path: Path) -> None:
    """However far the host has gone on meanwhile."""
    calls, gpu = CallLog(), FakeGpu()
    calls.gpu = gpu
    dog = make_watchdog(calls, tmp_path / "hang", 1.0)  # looks every 0.1 s
    for number in (1, 2):
        calls.begin(on_gpu(number))
        calls.end()
    dog._waits()
    time.sleep(0.05)
    assert 0.04 < dog._waits() < 0.21
    entry = to_dump(json.loads(json.dumps(look(0, calls))))
    assert entry.pending == on_gpu(1) and entry.begun == {(False, "dp", (0, 1)): 2}
    gpu.done = 1
    assert dog._waits() == 0, "another call"
    gpu.done = 2
    time.sleep(0.05)
    assert dog._waits() == 0, "nothing is waited for"


LOST_PEER = """
    import sys, threading, time
    from pathlib import Path
    from minitrain.errors import TryAgainError
    from minitrain.watch import watchdog
    from minitrain.watch.calls import CallLog
    from minitrain.watch.watchdog import Watchdog

    directory, speaks_first, leaves = Path(sys.argv[1]), sys.argv[2] == "first", sys.argv[3] == "leaves"
    limit = float(sys.argv[4])
    watchdog.LONGEST_END, watchdog.SLOWEST = 0.5, 0.04

    class Gpu:
        def mark(self): ...
        def check(self):
            what = "NCCL failed in a call that was under way: remote error"
            raise TryAgainError(what, "over dp", "restart")

    class World:
        rank, size = 0, 2
        def abort(self, code):
            print("abort", code, flush=True)

    if not speaks_first:
        (directory / "run").mkdir(parents=True)
    calls = CallLog()
    calls.gpu = Gpu()
    dog = Watchdog(World(), calls, directory / "run", limit, None)
    dog.start()
    if leaves:
        time.sleep(0.2)
        dog.stop()
        time.sleep(1.5)
    else:
        threading.Event().wait(30)  # the rank's own thread waits for the GPU, for ever
    print("left by itself")
"""


@pytest.mark.parametrize("limit", [0.4, 0.0])
def test_a_lost_peer_ends_the_job(limit: float, tmp_path: Path) -> None:
    """One rank speaks for all. A rank that is about to end of itself says why itself."""
    code = textwrap.dedent(LOST_PEER)
    job = run_python(code, tmp_path / "a", "first", "stays", limit, timeout=60)
    assert job.returncode == 75 and job.stdout == "abort 75\n"
    assert only_line(job).endswith("NCCL failed in a call that was under way: remote error; over dp; restart")
    job = run_python(code, tmp_path / "b", "second", "stays", limit, timeout=60)
    assert (job.returncode, job.stdout, job.stderr) == (75, "abort 75\n", "")
    job = run_python(code, tmp_path / "c", "first", "leaves", limit, timeout=60)
    assert (job.returncode, job.stdout, job.stderr) == (0, "left by itself\n", "")


# --- whole jobs


def faulty(
    what: str, rank: int, step: int, arguments: str, ranks: int, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """minitrain with a fault, in the run directory `run`; must end within a minute."""
    script = str(REPOSITORY / "tests" / "faulty.py")
    command = [sys.executable, script, what, str(rank), str(step), "--", *f"{SMALL} {arguments}".split()]
    return run(under_mpirun([*command, "--run.dir", "run"], ranks), cwd=cwd, timeout=60)


def only_line(job: subprocess.CompletedProcess[str]) -> str:
    """The one error that the user sees."""
    assert job.returncode != 0
    lines = [line for line in job.stderr.splitlines() if line.startswith("minitrain: error:")]
    assert len(lines) == 1, job.stderr
    return lines[0]


def test_a_stopped_rank_ends_the_job(tmp_path: Path) -> None:
    """SIGSTOP to one of four. Dumps of an earlier hang are there and mean nothing."""
    earlier = tmp_path / "run" / "hang" / "20200101-000000"
    earlier.mkdir(parents=True)
    (earlier / "hang-rank-1.json").write_text("{}")
    job = faulty("stop@begin", 1, 3, "--run.hang_seconds 4 --parallel.dp 4", 4, tmp_path)
    line = only_line(job)
    assert re.search(
        r"rank 1 has not come to all_reduce of \d+ float32 over replica \(call \d+\), for which", line
    )
    assert "; rank 1: no sign of life; restart from the last checkpoint with --run.resume auto" in line
    assert job.returncode == 75
    (hang,) = set((tmp_path / "run" / "hang").iterdir()) - {earlier}
    for rank in (0, 2, 3):
        entry = json.loads((hang / f"hang-rank-{rank}.json").read_text())
        assert entry["rank"] == rank and 10 < len(entry["last"]) <= KEPT
        assert entry["pending"]["verb"] == "all_reduce" and entry["pending"]["seconds"] > 1
        assert any("start_step" in line for line in entry["stacks"]["MainThread"])


def test_ranks_on_threads_hang_and_end_too(tmp_path: Path) -> None:
    """Two ranks wait for the one that sleeps: which of them for longer is a matter of luck."""
    arguments = "--run.hang_seconds 2 --collectives threads --parallel.pp 2 --parallel.dp 2"
    job = faulty("sleep@message", 2, 2, arguments, 1, tmp_path)
    line = only_line(job)
    assert job.returncode == 75
    by_next_stage = r"recv of 8192 float32 over pp from rank 2 to rank 3 \(message \d+\), for which rank 3"
    by_replica = r"all_reduce of 8192 float32 over replica \(call \d+\), for which rank 0"
    assert re.search(f"rank 2 has not come to ({by_next_stage}|{by_replica}) waited", line)
    assert "; rank 2: at minitrain/parallel/outbox.py:" in line


def test_a_rank_that_leaves_a_call_out_at_the_end_is_waited_for_in_the_next_one(tmp_path: Path) -> None:
    """With run.check the next call, a barrier, is another one: all are told, and nobody waits."""
    job = faulty("missing", 1, 6, "--run.check true --collectives threads --parallel.dp 2", 1, tmp_path)
    assert job.returncode == 6 and "ranks disagree about a collective" in only_line(job)


def test_nothing_is_left_where_nothing_hung(tmp_path: Path) -> None:
    job = faulty("slow", 1, 100, "--run.hang_seconds 20 --collectives threads --parallel.dp 2", 1, tmp_path)
    assert job.returncode == 0, job.stderr
    assert not (tmp_path / "run" / "hang").exists()


@pytest.mark.parametrize(
    "what, arguments, told",
    [
        (
            "op",
            "--parallel.tp 2 --parallel.dp 1",
            r"ranks disagree .*: rank 0: all_reduce\(sum\) of 8192 float32, "
            r"rank 1: all_reduce\(max\) of 8192 float32; call \d+ over tp, ranks 0-1; ",
        ),
        (
            "shape",
            "--parallel.pp 2 --parallel.dp 1",
            r"rank 1 sends message \d+ of 255 x 32 float32, "
            r"but rank 0 expects message \d+ of 256 x 32 float32; over pp from rank 1 to rank 0; ",
        ),
    ],
)
def test_ranks_that_part_ways_are_told_apart(what: str, arguments: str, told: str, tmp_path: Path) -> None:
    job = faulty(what, 1, 3, f"--run.check true {arguments}", 2, tmp_path)
    assert job.returncode == 6 and re.search(told, only_line(job))


def test_a_rank_of_another_software_is_named(tmp_path: Path) -> None:
    job = faulty("source", 2, 0, "", 3, tmp_path)
    assert job.returncode == 2
    assert re.search(
        r"rank 2 has another source code of minitrain than the rest; ranks 0-1: \w{12}, rank 2: \w{11}; "
        r"install the same on every machine",
        only_line(job),
    )
    assert not (tmp_path / "run").exists()


# --- launchers that die

KILL_THE_LAUNCHER = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    job = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = Path("run/metrics.jsonl")
    while not metrics.exists() or not metrics.read_text():
        assert job.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text()
    job.kill()
    print(children)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for the ranks of a launcher")
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_whose_launcher_was_killed_end(ranks: int, tmp_path: Path) -> None:
    """`run` ends what is left of a session: so the ranks are looked at while it still lasts."""
    wait = """
        ranks = [int(pid) for pid in children.split()]
        assert len(ranks) == int(sys.argv[3])  # mpirun -n RANKS
        while any(Path(f"/proc/{pid}/stat").exists() for pid in ranks):
            time.sleep(0.05)
        print("no orphans")
    """
    training = [sys.executable, "-m", "minitrain", *SMALL.replace("steps 6", "steps 1000000").split()]
    mpirun, *command = under_mpirun([*training, "--run.dir", "run", "--run.hang_seconds", "0"], 2)
    command = [mpirun, "-n", str(ranks), *command[2:]]
    job = run_python(
        textwrap.dedent(KILL_THE_LAUNCHER) + textwrap.dedent(wait), *command, cwd=tmp_path, timeout=60
    )
    assert "no orphans" in job.stdout, job.stderr


def test_a_run_without_launcher_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    """`nohup python -m minitrain &`, its ranks being threads."""
    steps = f"{SMALL.replace('tokens 0', 'tokens 1')} --collectives threads --parallel.dp 2 --run.dir run"
    script = f"{sys.executable} -m minitrain {steps} > log 2>&1 &"
    code = f"""
        import os, subprocess, sys, time
        subprocess.run(["bash", "-c", {script!r}])
        deadline = time.monotonic() + 50
        while not os.path.exists("run/samples.txt") and time.monotonic() < deadline:
            time.sleep(0.05)
    """
    run_python(textwrap.dedent(code), cwd=tmp_path, timeout=60)
    assert (tmp_path / "run" / "samples.txt").exists()


# --- slow ranks


def test_a_slow_rank_is_named_once(tmp_path: Path) -> None:
    job = faulty("slow", 1, 1, "--run.compare_every 3 --collectives threads --parallel.dp 3", 1, tmp_path)
    assert job.returncode == 0, job.stderr
    told = [line for line in job.stdout.splitlines() if "is slow" in line]
    assert len(told) == 1
    assert re.fullmatch(
        r"rank 1 is slow: it computes [\d.e+]+ ms a step, others of its pipeline stage [\d.]+ ms "
        r"\(medians, the last 3 steps\)",
        told[0],
    )


def test_only_ranks_of_one_stage_are_compared_and_only_a_large_difference_is_told() -> None:
    assert slowest(np.array([[1.0, 0], [9.0, 1]])) is None, "stages of one rank each"
    assert slowest(np.array([[1.0, 0], [1.9, 0], [1.0, 0]])) is None
    assert slowest(np.array([[1.0, 0], [2.1, 0], [1.0, 0], [50.0, 1], [50.0, 1]])) == (1, 2.1, 1.0)
    assert slowest(np.array([[1.0, 0], [3.0, 0], [4.0, 0], [1.0, 0]])) == (2, 4.0, 1.0)


def test_time_in_calls_is_not_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 1 + 4 + 16 seconds of some clock, of which 4 are in a call."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls = CallLog()
    pace = Pace(calls)
    with pace.step():
        now[0] += 1
        calls.begin(Call("barrier", "dp", (0, 1), 1))
        now[0] += 4
        calls.end()
        now[0] += 16
    assert pace._seconds == [17]
