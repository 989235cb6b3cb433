"""Hugging Face directories that were changed. There are no checksums: a clean error, or the values that the
safetensors library reads from the same files.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.campaign import campaign, run_cases
from fuzz.mutations import (
    ENTRIES,
    HARMLESS,
    Entry,
    Rng,
    bend,
    damaged,
    disarranged,
    json_text,
    link_outside,
    name_of,
    pick,
)
from fuzz.sandbox import Sandbox
from fuzz.stored import assembled, bent
from safetensors.numpy import load_file

from minitrain.checkpoint.hf_config import CONFIG, read_hf_model_config
from minitrain.checkpoint.hf_layout import stored_shapes
from minitrain.checkpoint.hf_tokenizer import read_tokenizer
from minitrain.checkpoint.huggingface import INDEX, PREFIX, WEIGHTS, HFReader, convert
from minitrain.config import ModelConfig
from minitrain.errors import CheckpointError, ConfigError, NumericsError
from minitrain.generate import generate_text
from minitrain.model.spec import model_specs
from minitrain.prepare import prepare

LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "vocab_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_dropout": 0.1, "rope_scaling": None, "torch_dtype": "float32", "minitrain_tokenizer": "bytes",
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16, "vocab_size": 256,
    "n_inner": None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "resid_pdrop": 0.1,
}  # fmt: skip


def write_model(directory: Path, config: dict[str, object], sharded: bool) -> Path:
    directory.mkdir()
    (directory / CONFIG).write_text(json.dumps(config))
    model, _ = read_hf_model_config(directory)
    rng = np.random.default_rng(0)
    shapes = stored_shapes(model)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if model.tied:
        values["lm_head.weight"] = values["transformer.wte.weight"]  # superfluous, and right
    if not sharded:
        (directory / WEIGHTS).write_bytes(assembled(values, {"format": "pt"}))
        return directory
    names = list(values)
    files = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, inside in files.items():
        (directory / file).write_bytes(assembled({name: values[name] for name in inside}))
    mapped = {name: file for file, inside in files.items() for name in inside}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
    return directory


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [
        write_model(root / "llama", LLAMA, sharded=False),
        write_model(root / "gpt2", GPT2, sharded=False),
        write_model(root / "sharded", LLAMA, sharded=True),
    ]


def _bytes(directory: Path, elsewhere: Path, rng: Rng) -> None:
    contents = {path: path.read_bytes() for path in sorted(directory.iterdir())}
    path = pick(rng, list(contents))
    path.write_bytes(damaged(contents[path], rng, list(contents.values())))


def _json(directory: Path, elsewhere: Path, rng: Rng) -> None:
    path = pick(rng, sorted(directory.glob("*.json")))
    tree = json.loads(path.read_text())
    for _ in range(int(rng.integers(1, 3))):
        bend(tree, rng)
    path.write_bytes(json_text(tree).encode(errors="surrogatepass"))


def _header(directory: Path, elsewhere: Path, rng: Rng) -> None:
    path = pick(rng, sorted(directory.glob("*.safetensors")))
    path.write_bytes(bent(path.read_bytes(), rng))


DAMAGE: list[Callable[[Path, Path, Rng], None]] = [_bytes, _json, _json, _json, _header, _header, disarranged]


def read_all(directory: Path) -> tuple[ModelConfig, list[str]]:
    """Everything that such a directory is read for."""
    model, notices = read_hf_model_config(directory)
    reader = HFReader(directory, model)
    for spec in model_specs(model):
        reader.read(spec, tuple(slice(0, n) for n in spec.shape))
    read_tokenizer(directory, model.vocab)
    return model, notices


def one_case(number: int, bases: list[Path], sandbox: Sandbox) -> bool:
    rng = np.random.default_rng([2, number])
    sandbox.renew(pick(rng, bases))
    pick(rng, DAMAGE)(sandbox.case, sandbox.elsewhere, rng)
    return is_accepted(sandbox)


def is_accepted(sandbox: Sandbox) -> bool:
    """Whether the model in the sandbox is taken; if it is, for what it is."""
    directory = sandbox.case
    links = any(path.is_symlink() for path in directory.iterdir())  # which are allowed
    linked = (sandbox.elsewhere,) if links else ()
    found = sandbox.read(lambda: read_all(directory), {CheckpointError.exit_code}, *linked)
    numerics = {CheckpointError.exit_code, NumericsError.exit_code}  # a model may be read and compute nothing
    sandbox.read(lambda: generate_text(str(directory), "In", 2, 0.0, 0), numerics, *linked)
    start = ["--print-config", "--run.init_from", str(directory)]
    sandbox.read(lambda: prepare(start, 1), {CheckpointError.exit_code, ConfigError.exit_code}, *linked)
    if found is None:
        return False
    model, notices = found
    assert all(notice.isprintable() and len(notice) < 1000 for notice in notices)
    require_same_values(directory, sandbox.root / "again", PREFIX[model.arch])
    return True


def require_same_values(directory: Path, again: Path, prefix: str) -> None:
    """Written once more, they are what the library reads."""
    shutil.rmtree(again, ignore_errors=True)
    convert(directory, again)
    said = {
        name: values
        for path in sorted(directory.glob("*.safetensors"))
        for name, values in load_file(path).items()
    }
    for name, values in load_file(again / WEIGHTS).items():
        stored = said[name] if name in said else said[name.removeprefix(prefix)]
        assert np.array_equal(stored.astype(values.dtype), values), name


@pytest.mark.parametrize("action", ENTRIES, ids=name_of)
def test_every_entry(action: Entry, bases: list[Path], sandbox: Sandbox) -> None:
    for name, other in ((CONFIG, WEIGHTS), (WEIGHTS, CONFIG)):
        sandbox.renew(bases[0])
        action(sandbox.case / name, sandbox.case / other, sandbox.elsewhere)
        assert is_accepted(sandbox) == (action in (*HARMLESS, link_outside)), name


@campaign(in_suite=80, in_all=2_000)
def test_models(numbers: range, bases: list[Path], sandbox: Sandbox) -> None:
    for base in bases:
        sandbox.renew(base)
        assert sandbox.read(lambda: read_all(sandbox.case), ())
        assert sandbox.read(lambda: generate_text(str(sandbox.case), "In", 2, 0.0, 0), ())
    run_cases(numbers, lambda number: one_case(number, bases, sandbox))
