"""What fuzzing has found, each by name, so that it need not be found again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fuzz.stored import assembled
from fuzz.test_fuzz_models import GPT2, LLAMA, write_model
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minitrain.arguments import parse
from minitrain.checkpoint.hf_config import CONFIG, read_hf_model_config
from minitrain.checkpoint.huggingface import WEIGHTS, HFReader
from minitrain.checkpoint.safetensors_file import open_tensors
from minitrain.checkpoint.weights import stored_values
from minitrain.comm.agree import together
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.errors import CheckpointError, MinitrainError, one_line
from minitrain.model.spec import model_specs
from minitrain.observe.run_directory import METRICS, cut_metrics
from minitrain.settings import read_settings, read_toml


def test_an_entry_of_a_header_may_have_more_fields(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = assembled({"a": np.ones(2, np.float32)})
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].replace(b'"dtype"', b'"path": 1, "dtype"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.ones(2, np.float32).tobytes())
    assert open_tensors(path)["a"].read(np.arange(2), slice(0, 1)).tolist() == [[1], [1]]


@pytest.mark.parametrize("key, value, says", [
    ("rope_theta", 10**400, "rope_theta 1000000000"),  # a whole number that no float can be
    ("num_hidden_layers", 10**9, "model.layers is 1000000000, not a whole number from 1 to 10,000"),
    ("model_type", "x" * 10**5, "model_type 'xxx"),
    ("hidden_act", [[[[[[[[["silu"]]]]]]]]], "hidden_act [["),
    ("attention_dropout", "\x1b[2J\n", None),  # a notice
])  # fmt: skip
def test_values_of_a_model(key: str, value: object, says: str | None, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(LLAMA | {key: value}))
    if says is None:
        assert all(notice.isprintable() for notice in read_hf_model_config(tmp_path)[1])
        return
    with pytest.raises(CheckpointError) as error:
        read_hf_model_config(tmp_path)
    assert says in str(error.value) and len(str(error.value)) < 500


def test_a_description_of_gigabytes(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(b"{}")
    os.truncate(tmp_path / CONFIG, 1 << 32)
    with pytest.raises(CheckpointError, match="it has 4294967296 bytes, more than 1048576"):
        read_hf_model_config(tmp_path)


def test_a_superfluous_head_of_no_shape(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "gpt2", GPT2, sharded=False)
    model, _ = read_hf_model_config(directory)
    names = {where: np.zeros(shape, np.float32) for where, shape in shapes_of(directory).items()}
    (directory / WEIGHTS).write_bytes(assembled(names | {"lm_head.weight": np.zeros((), np.float32)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[\], not \[256, 8\]"):
        HFReader(directory, model)


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    tensors = open_tensors(directory / WEIGHTS)
    return {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize("precision, fits", [("fp16", False), ("bf16", True), ("fp32", True)])
def test_weights_beyond_the_precision(precision: str, fits: bool, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "llama", LLAMA, sharded=False)
    model, _ = read_hf_model_config(directory)
    values = {name: np.full(shape, 1e5, np.float32) for name, shape in shapes_of(directory).items()}
    (directory / WEIGHTS).write_bytes(assembled(values))
    fill = stored_values(HFReader(directory, model), Config(model=model, precision=precision))  # type: ignore[arg-type]
    spec = model_specs(model)[0]
    box = tuple(slice(0, n) for n in spec.shape)
    if fits:
        assert (fill(spec, box) == 1e5).all()
    else:
        with pytest.raises(CheckpointError, match="a weight of embedding is beyond the numbers of fp16"):
            fill(spec, box)


@pytest.mark.parametrize("text, says", [
    ("[optim]\nlr = " + "[" * 5000, "not TOML"),
    ("[optim]\nlr = " + "[" * 300 + "]" * 300, "not TOML|not a number"),
    (".".join("a" * 12_000) + " = 1", "a line has hundreds of dots"),
    ("[train]\nseed = 0x" + "f" * 4000, "train.seed is beyond all measure, not a whole number"),
    ("model.layers = {}", "model.layers is {}, not a whole number"),
    ("[modle]", "unknown key modle"),
    ("\n".join(f"k{i} = 1" for i in range(100)), "100 keys are unknown, such as k0"),
    ("#" * 40_000, "it has 40000 bytes, more than 32768"),
])  # fmt: skip
def test_files_of_settings(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    _, problems, _ = read_toml(str(path))
    problems += read_settings(parse(["--config", str(path)])).problems
    assert any(part in str(problem) for problem in problems for part in says.split("|")), problems


def test_a_pipe_is_no_file_of_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would be to wait
    assert "it is no plain file" in str(read_toml(str(tmp_path / "pipe"))[1][0])


@pytest.mark.parametrize("value", ["[" * 900, "\udcff", "{a=" * 200])
def test_words_of_the_command_line(value: str) -> None:
    for option in ("optim.lr", "train.steps", "precision"):
        problems = read_settings(parse([f"--{option}", value])).problems
        assert len(problems) == 1 and option in problems[0].what
    text = read_settings(parse(["--data.path", "\udcff"])).problems
    assert "data.path" in text[0].what, "a name that is not UTF-8"


def test_any_text_reaches_every_rank() -> None:
    """Names out of a file may hold the characters that once parted the texts of a message."""
    odd = "a\0b\1c\udcff"

    def on_rank(world: Comm) -> str:
        def fail() -> None:
            if world.rank == 1:
                raise CheckpointError(odd, odd, odd)

        try:
            together(world, fail)
        except MinitrainError as error:
            return error.problems[0].what
        return ""

    assert run_threads(2, on_rank, 60.0) == [odd, odd]


@hypothesis_settings(deadline=None)
@given(st.text())
def test_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable() and len(line) <= 12_000
    if text.isprintable() and text == " ".join(text.split()) and len(text) < 1000:
        assert line == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "loss"]), inner),
    max_leaves=5,
)


LINES = JSON.map(json.dumps).map(str.encode) | st.binary(max_size=9)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(LINES, max_size=6), step=st.integers(0, 9))
def test_any_metrics_can_be_cut(lines: list[bytes], step: int, tmp_path: Path) -> None:
    """What is kept and what is cut are all there was, and nothing is kept that is after the step."""
    for path in tmp_path.iterdir():
        path.unlink()
    whole = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines) + b"[" * 3000
    (tmp_path / METRICS).write_bytes(whole)
    cut_metrics(tmp_path, step)
    kept = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    cut = (tmp_path / "metrics.cut.jsonl").read_bytes()
    assert sorted(whole.split(b"\n")) == sorted((b"".join(kept) + cut).split(b"\n"))
    assert all(json.loads(line)["step"] <= step for line in kept)
