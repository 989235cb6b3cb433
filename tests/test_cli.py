"""The outside of the program: refusals, help, what is printed once, and how a job ends when a rank fails."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from launch import run_minitrain, run_python
from refusals import ALL, LAYOUT, Refusal

from minitrain.cli import main
from minitrain.config import Config
from minitrain.errors import DataError, MinitrainError, render
from minitrain.launched import LAUNCHERS
from minitrain.observe.recorder import AnyRecorder
from minitrain.prepare import prepare

PREFIX = "minitrain: error: "
SOON = 60.0  # seconds; answers take a few, a machine under load more


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory but for what the table of refusals stumbles over, and no launcher."""
    monkeypatch.chdir(tmp_path)
    for size, rank, _ in LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "short.txt").write_text("In the beginning")
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Takes the place of training: the configurations it was called with."""
    configs: list[Config] = []
    stub = types.ModuleType("minitrain.train")

    def train(config: Config, *_: object) -> None:
        (Path(str(config.run.dir)) / "metrics.jsonl").touch()
        configs.append(config)

    stub.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    return configs


def everything_below(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def argv_of(refusal: Refusal, place: Path) -> list[str]:
    if refusal.toml is None:
        return refusal.arguments.split()
    (place / "run.toml").write_text(refusal.toml)
    return [*refusal.arguments.split(), "--config", "run.toml"]


@pytest.mark.parametrize("refusal", ALL, ids=lambda r: (r.arguments or r.toml)[:80])
def test_what_cannot_run_is_refused_and_leaves_nothing_behind(refusal: Refusal, place: Path) -> None:
    argv = argv_of(refusal, place)
    before = everything_below(place)
    with pytest.raises(MinitrainError) as caught:
        prepare(argv, refusal.ranks)
    message = render(caught.value.problems)
    assert caught.value.exit_code == refusal.exit_code
    for part in refusal.says:
        assert part in message
    for problem in caught.value.problems:
        assert all(problem), "what, where and what to do"
    assert everything_below(place) == before


@pytest.mark.parametrize(
    "refusal", [r for r in ALL if r.ranks == 1], ids=lambda r: (r.arguments or r.toml)[:80]
)
def test_a_refusal_is_one_line_on_standard_error(
    refusal: Refusal, place: Path, trained: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv_of(refusal, place)) == refusal.exit_code
    out, err = capsys.readouterr()
    assert out == "" and not trained
    lines = err.splitlines()
    assert lines[0].startswith(PREFIX)
    if len(lines) == 1:
        assert lines[0].count("; ") >= 2, "what; where; what to do"
    else:
        assert lines[0] == f"{PREFIX}{len(lines) - 1} problems in the configuration"
        assert all(line.startswith("  - ") and line.count("; ") >= 2 for line in lines[1:])


def test_all_problems_come_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.toml").write_text(
        'precision = "fp61"\n[train]\nstep = 5\nmicro_batch = 0\n[optim]\nlr = -1.0\n'
    )
    argv = "--config bad.toml --modl.width 3 --model.heads two --model.kv_heads 0 --optim.betas 1 2"
    assert main([*argv.split(), "--run.dir", "full"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{PREFIX}9 problems in the configuration\n")
    named = (
        "fp61",
        "train.step;",
        "micro_batch is 0",
        "lr is -1.0",
        "--modl.width",
        '"two"',
        "kv_heads is 0",
    )
    for part in (*named, "full holds a run", "betas is (1.0, 2.0)"):
        assert part in err


def test_one_mistake_is_reported_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt number of heads is no reason to say that the default number does not fit tp."""
    assert main("--model.hedas 8 --parallel.tp 8 --collectives threads".split()) == 2
    assert capsys.readouterr().err.startswith(f"{PREFIX}unknown option --model.hedas;")


@pytest.mark.parametrize("line, part", [
    ("--help", "--parallel.tp N"), ("-h", "usage:"), ("generate --help", "--prompt"), ("convert -h", "DST"),
    ("study", "  zero  "), ("study zero", "on 4 ranks"),
    ("--version", "minitrain "), ("--print-config", "ffn = 352"), ("--dry-run", "configuration is legal"),
])  # fmt: skip
def test_what_only_prints(line: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_below(place)
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert part in out and err == ""
    assert everything_below(place) == before


def test_help_names_no_command_that_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == [
        "train",
        "generate",
        "convert",
        "checkpoint",
        "plan",
        "study",
        "report",
    ]


def test_a_run_gets_a_numbered_directory(place: Path, trained: list[Config]) -> None:
    for _ in range(2):
        (place / "runs" / "llama-2x128-001").mkdir(parents=True, exist_ok=True)
        (place / "runs" / "llama-2x128-001" / "metrics.jsonl").write_text("")
        assert main([]) == 0
    assert [config.run.dir for config in trained] == ["runs/llama-2x128-002", "runs/llama-2x128-003"]


def test_a_directory_of_which_a_part_can_be_made_is_not_begun(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_below(place)
    assert main(["--run.dir", f"new/{'x' * 300}"]) == 2
    assert "cannot be made: File name too long" in capsys.readouterr().err
    assert everything_below(place) == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_what_stands_in_place_of_runs_is_refused(
    what: str, dry: list[str], place: Path, trained: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "runs").write_text("") if what == "a file" else (place / "runs").symlink_to("nowhere")
    assert main(["--train.steps", "99", *dry]) == 2
    assert f"runs is {what}" in capsys.readouterr().err and not trained


def test_a_number_that_a_file_has_is_taken(place: Path, trained: list[Config]) -> None:
    (place / "runs").mkdir()
    (place / "runs" / "llama-2x128-001").write_text("")
    assert main([]) == 0
    assert [config.run.dir for config in trained] == ["runs/llama-2x128-002"]


def test_a_run_that_does_not_begin_leaves_no_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_data(*_: object) -> None:
        raise DataError("no text", "x.txt", "give one")

    stub = types.ModuleType("minitrain.train")
    stub.train = no_data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    before = everything_below(place)
    assert main(["--run.dir", "new/deep"]) == 3
    assert main([]) == 3
    assert capsys.readouterr().err == f"{PREFIX}no text; x.txt; give one\n" * 2
    assert everything_below(place) == before


def test_threads_are_ranks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, str]] = []
    stub = types.ModuleType("minitrain.train")
    stub.train = lambda config, world, recorder, *_: seen.append(
        (world.rank, world.size, type(recorder).__name__)
    )  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    assert main("--collectives threads --parallel.tp 2 --parallel.pp 2".split()) == 0
    assert sorted(seen) == [(0, 4, "Recorder"), *((rank, 4, "SilentRecorder") for rank in (1, 2, 3))]


@pytest.mark.parametrize("error, code, parts", [
    (KeyError("lost"), 6, ("KeyError: 'lost'", "test_cli.py:", "--debug")),
    (MemoryError("Unable to allocate 8 PiB"), 2, ("out of memory: Unable to allocate", "micro_batch")),
    (RuntimeError("two\nlines; and a semicolon"), 6, ("two lines",)),
])  # fmt: skip
def test_errors_that_nobody_foresaw_are_one_line_too(
    error: Exception, code: int, parts: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def breaks(*_: object) -> None:
        raise error

    stub = types.ModuleType("minitrain.train")
    stub.train = breaks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    assert main([]) == code
    err = capsys.readouterr().err
    assert err.startswith(PREFIX) and err.count("\n") == 1
    assert all(part in err for part in parts[:1] + parts[2:])
    assert main(["--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_has_no_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stub = types.ModuleType("minitrain.train")
    stub.train = interrupted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main([]) == 130
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "another one would interrupt the end"
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "minitrain: interrupted\n"


def test_an_error_does_not_stand_behind_the_bar(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks_after_the_start(config: Config, world: object, recorder: AnyRecorder, *_: object) -> None:
        recorder.begin(config)
        raise DataError("a", "b", "c")

    stub = types.ModuleType("minitrain.train")
    stub.train = breaks_after_the_start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minitrain.train", stub)
    assert main(["--run.progress", "bar"]) == 3
    assert capsys.readouterr().err.endswith(f"\n{PREFIX}a; b; c\n")


# As processes, alone and under mpirun


def test_ctrl_c_ends_ranks_on_threads(tmp_path: Path) -> None:
    code = """
        import signal, subprocess, sys
        arguments = "--collectives threads --parallel.tp 2 --run.dir d --train.steps 100000"
        command = [sys.executable, "-m", "minitrain", *arguments.split()]
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit that it is ignored
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        next(line for line in child.stdout if "loss" in line)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
        print(repr((child.returncode, err)))
    """
    done = run_python(textwrap.dedent(code), cwd=tmp_path, timeout=SOON)
    assert done.stdout.splitlines()[-1] == repr((130, "minitrain: interrupted\n")), done.stdout


@pytest.mark.parametrize("name, module", [("SIGTERM", "minitrain.cli"), ("SIGUSR1", "numpy.lib")])
def test_told_to_stop_before_there_is_a_run(name: str, module: str, tmp_path: Path) -> None:
    """While modules are imported. One rank speaks for all."""
    code = f"""
        import importlib.abc, os, runpy, signal, sys

        class Stop(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "{module}":
                    os.kill(os.getpid(), signal.{name})

        sys.meta_path.insert(0, Stop())
        runpy.run_module("minitrain", run_name="__main__")
    """
    for rank, says in ((0, "minitrain: told to stop while no run was under way\n"), (1, "")):
        as_rank = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | as_rank, capture_output=True, text=True, timeout=SOON
        )
        assert (done.returncode, done.stderr, done.stdout) == (75, says, "")


def test_a_process_exits_with_the_code(tmp_path: Path) -> None:
    done = run_minitrain("--model.layers", "0", cwd=tmp_path, timeout=SOON)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{PREFIX}model.layers is 0") and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_blas_has_one_thread_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    code = """
        import os, runpy, sys
        del os.environ["OPENBLAS_NUM_THREADS"]
        os.environ["OMP_NUM_THREADS"] = "3"
        sys.argv[1:] = ["--version"]
        try:
            runpy.run_module("minitrain", run_name="__main__")
        except SystemExit:
            print(os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
    """
    assert run_python(textwrap.dedent(code), cwd=tmp_path).stdout.splitlines()[-1] == "1 3"


def test_help_imports_neither_mpi_nor_pydantic(tmp_path: Path) -> None:
    code = "import sys; from minitrain.cli import main; main(['--help'])\n"
    code += "print(sorted({'mpi4py', 'pydantic', 'tqdm', 'tomli_w', 'safetensors'} & set(sys.modules)))"
    assert run_python(code, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("refusal", [r for r in LAYOUT if r.ranks == 4][:3], ids=lambda r: r.arguments)
def test_four_ranks_refuse_once(refusal: Refusal, tmp_path: Path) -> None:
    done = run_minitrain(*refusal.arguments.split(), ranks=4, cwd=tmp_path, timeout=SOON)
    assert done.returncode == 2
    assert done.stderr.count("minitrain: error:") == 1
    assert all(part in done.stderr for part in refusal.says)
    assert list(tmp_path.iterdir()) == []


def test_four_ranks_print_help_once(tmp_path: Path) -> None:
    done = run_minitrain("--help", ranks=4, cwd=tmp_path, timeout=SOON)
    assert done.returncode == 0
    assert done.stdout.count("usage:") == 1


def test_a_world_of_another_size_than_the_launcher_says_is_refused(tmp_path: Path) -> None:
    env = {"PMI_SIZE": "4", "PMI_RANK": "0"}
    done = run_minitrain("--help", cwd=tmp_path, env=env, timeout=SOON)
    assert done.returncode == 2 and done.stdout == ""
    assert "the launcher started 4 processes, but MPI sees 1" in done.stderr
    done = run_minitrain("--help", cwd=tmp_path, env=env | {"PMI_RANK": "3"}, timeout=SOON)
    assert done.returncode == 2 and "minitrain: error:" not in done.stderr, "the first process speaks for all"


FAILING = """
    import os, sys, types
    stub = types.ModuleType("minitrain.train")
    def train(config, world, recorder, *_):
        {body}
        world.barrier()
    stub.train = train
    sys.modules["minitrain.train"] = stub
    from minitrain.cli import main
    sys.exit(main([]))
"""


@pytest.mark.parametrize("body, code, says", [
    ("if world.rank == 2: raise KeyError('lost')", 6, "rank 2: KeyError: 'lost'"),
    ("raise KeyError('lost')", 6, "rank 0: KeyError: 'lost'"),
    ("if world.rank == 1: sys.exit(3)", 3, "rank 1: SystemExit"),
    ("if world.rank == 3: raise MemoryError('8 PiB')", 2, "rank 3: out of memory: 8 PiB"),
])  # fmt: skip
def test_a_rank_that_fails_ends_the_job_with_one_message(
    body: str, code: int, says: str, tmp_path: Path
) -> None:
    done = run_python(textwrap.dedent(FAILING).format(body=body), ranks=4, cwd=tmp_path, timeout=SOON)
    assert done.returncode == code
    assert done.stderr.startswith(PREFIX + says) and done.stderr.count(PREFIX) == 1


@pytest.mark.parametrize("n_bytes, file", [(0, "config.toml"), (2048, "metrics.jsonl")])
def test_a_full_disk_is_named_in_one_line(n_bytes: int, file: str, tmp_path: Path) -> None:
    """Files that may not grow stand for a disk without space."""
    code = f"""
        import resource, subprocess, sys
        arguments = "--run.dir new/d --train.steps 20 --data.holdout 0 --run.progress none"
        done = subprocess.run(
            [sys.executable, "-m", "minitrain", *arguments.split()], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, {n_bytes})),
        )
        print(done.returncode, done.stderr)
    """
    said = run_python(textwrap.dedent(code), cwd=tmp_path, timeout=SOON).stdout
    assert said.startswith(f"2 {PREFIX}cannot write new/d/{file}: File too large; run.dir; free space")
    assert len(said.split("\n")) == 3, "one line"
    assert (tmp_path / "new").exists() == (n_bytes > 0), "a start that fails leaves nothing behind"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("argument", ["--print-config", "--help", "--version", "--dry-run"])
def test_what_cannot_be_printed_is_an_error(
    argument: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([argument]) == 2
    error = f"{PREFIX}cannot write: No space left on device; standard output; send it to another place\n"
    assert capsys.readouterr().err == error
    monkeypatch.setattr(sys, "stdout", None)
    assert main([argument]) == 2
    assert f"{PREFIX}cannot write: Bad file descriptor;" in capsys.readouterr().err


def test_a_reader_may_leave_early(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["--help"]) == 0


def test_a_closed_standard_error_changes_nothing_else(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys
        for steps in ("2", "0"):
            arguments = ["--run.dir", "d" + steps, "--data.holdout", "0", "--train.steps", steps]
            done = subprocess.run(
                [sys.executable, "-m", "minitrain", *arguments],
                stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2),
            )
            print(done.returncode, b"minitrain: error" in done.stdout, b"done in" in done.stdout)
    """
    done = run_python(textwrap.dedent(code), cwd=tmp_path, timeout=SOON)
    assert done.stdout.splitlines() == ["0 False True", "2 False False"]


def test_ctrl_c_during_the_imports(tmp_path: Path) -> None:
    code = """
        import os, runpy, signal, sys
        class CtrlC:
            def find_spec(name, *_):
                if name == "numpy":
                    os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, CtrlC)
        runpy.run_module("minitrain", run_name="__main__")
    """
    done = run_python(textwrap.dedent(code), cwd=tmp_path, timeout=SOON)
    assert (done.returncode, done.stderr) == (130, "minitrain: interrupted\n")


def test_a_closed_standard_output_does_not_end_training(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys
        arguments = "--run.dir d --train.steps 4 --data.holdout 0 --run.sample_tokens 8"
        command = [sys.executable, "-m", "minitrain", *arguments.split()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.close()
        err = child.stderr.read().decode()
        print(repr((child.wait(), err)))
    """
    done = run_python(textwrap.dedent(code), cwd=tmp_path, timeout=SOON)
    assert done.stdout.splitlines()[-1] == repr((0, "")), done.stdout
    lines = (tmp_path / "d" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
