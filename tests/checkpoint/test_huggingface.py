import errno
import json
import os
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitrain.checkpoint.hf_config import hf_config, read_hf_model_config, read_hf_tokenizer
from minitrain.checkpoint.hf_layout import stored_shapes
from minitrain.checkpoint.huggingface import (
    HFReader,
    HFWriter,
    check_hf_destination,
    commit_hf,
    convert,
    create_hf,
    partial_directory,
)
from minitrain.config import ModelConfig
from minitrain.errors import CheckpointError
from minitrain.model.spec import ParamSpec, model_specs

LLAMA = ModelConfig("llama", 2, 24, 4, 2, 40, 33, 16, False)
TIED = ModelConfig("llama", 1, 24, 4, 4, 40, 33, 16, True)
GPT2 = ModelConfig("gpt2", 2, 24, 4, 4, 40, 33, 16, True)
MODELS = {"llama": LLAMA, "tied": TIED, "gpt2": GPT2}


def whole(spec: ParamSpec) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in spec.shape)


def random_tensors(model: ModelConfig, dtype: object = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in stored_shapes(model).items()}


def write_directory(path: Path, model: ModelConfig, tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_config(model, np.dtype(np.float32), None)))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_conversion_keeps_every_bit(case: str, dtype: type, tmp_path: Path) -> None:
    tensors = random_tensors(MODELS[case], dtype)
    source = write_directory(tmp_path / "source", MODELS[case], tensors)
    assert convert(source, tmp_path / "new" / "copy") == []
    copy = load_file(tmp_path / "new" / "copy" / "model.safetensors")
    assert set(copy) == set(tensors)
    for name, tensor in tensors.items():
        assert copy[name].dtype == tensor.dtype and copy[name].tobytes() == tensor.tobytes()
    config = json.loads((tmp_path / "new" / "copy" / "config.json").read_text())
    assert config["dtype"] == np.dtype(dtype).name
    assert read_hf_model_config(tmp_path / "new" / "copy") == (MODELS[case], [])
    assert sorted(os.listdir(tmp_path / "new")) == ["copy"]


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("tp", [2, 3, 4])
def test_many_ranks_write_their_parts_at_once(case: str, tp: int, tmp_path: Path) -> None:
    model = MODELS[case]
    if tp == 3:
        model = ModelConfig(**(vars(model) | {"heads": 3, "kv_heads": 3}))
    values = {
        spec.name: np.random.default_rng(len(spec.name)).normal(size=spec.shape)
        for spec in model_specs(model)
    }
    directory = tmp_path / "out"
    partial = partial_directory(directory)
    create_hf(partial, model, np.dtype(np.float64), "bytes")

    def rank(r: int) -> None:
        writer = HFWriter(partial, model)
        for spec in model_specs(model):
            box = spec.tp_slice(r, tp)
            if r % spec.tp_replicas(tp) == 0:
                writer.write(spec, box, values[spec.name][box])
        writer.flush()

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(tp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not directory.exists()
    commit_hf(partial, directory)
    assert not partial.exists() and read_hf_tokenizer(directory) == "bytes"

    reader = HFReader(directory, model)
    assert reader.dtype == np.float64
    for spec in model_specs(model):
        assert np.array_equal(reader.read(spec, whole(spec)), values[spec.name])
        for r in range(tp):
            part = reader.read(spec, spec.tp_slice(r, tp))
            assert part.flags.c_contiguous and part.flags.writeable and type(part) is np.ndarray
            assert np.array_equal(part, values[spec.name][spec.tp_slice(r, tp)])


def test_values_are_converted_to_the_type_of_the_file(tmp_path: Path) -> None:
    create_hf(tmp_path / "x", TIED, np.dtype(ml_dtypes.bfloat16), None)
    spec = model_specs(TIED)[0]
    writer = HFWriter(tmp_path / "x", TIED)
    writer.write(spec, whole(spec), np.full(spec.shape, 1 / 3))
    assert (
        load_file(tmp_path / "x" / "model.safetensors")["model.embed_tokens.weight"]
        == ml_dtypes.bfloat16(1 / 3)
    ).all()


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_shards(case: str, tmp_path: Path) -> None:
    tensors = random_tensors(MODELS[case])
    source = write_directory(tmp_path / "source", MODELS[case], tensors)
    (source / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, source / file)
        weight_map |= dict.fromkeys(names[i::3], file)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    convert(source, tmp_path / "copy")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert all(np.array_equal(copy[name], tensor) for name, tensor in tensors.items())

    for bad in ("../source/a.safetensors", "/etc/passwd", "pytorch_model.bin", 3, ["a"]):
        index.write_text(json.dumps({"weight_map": weight_map | {names[0]: bad}}))
        with pytest.raises(CheckpointError, match="does not map tensors to files"):
            HFReader(source, MODELS[case])
    for text in ("", "{", "[]", "{}", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="does not map tensors to files"):
            HFReader(source, MODELS[case])
    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: weight_map[names[1]]}}))
    with pytest.raises(CheckpointError, match="is not where"):
        HFReader(source, MODELS[case])
    index.write_text(json.dumps({"weight_map": weight_map}))
    (source / weight_map[names[0]]).unlink()
    with pytest.raises(CheckpointError, match=r"the file is not there; .*model-00001-of-00003\.safetensors"):
        HFReader(source, MODELS[case])


def test_gpt2_without_prefix_and_with_buffers(tmp_path: Path) -> None:
    tensors = random_tensors(GPT2)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(2):
        bare[f"h.{layer}.attn.bias"] = np.tri(16, dtype=np.float32)[None, None]
        bare[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    convert(write_directory(tmp_path / "source", GPT2, bare), tmp_path / "copy")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert set(copy) == set(tensors) and all(np.array_equal(copy[name], tensors[name]) for name in tensors)


def test_superfluous_head_of_a_tied_model(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert "lm_head.weight" not in HFReader(write_directory(tmp_path, TIED, tensors), TIED).tensors
    tensors["lm_head.weight"][3, 4] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        HFReader(write_directory(tmp_path, TIED, tensors), TIED)


def test_mixed_types_become_the_wide_one(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, np.float16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    assert HFReader(write_directory(tmp_path, LLAMA, tensors), LLAMA).dtype == np.float32
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    assert HFReader(write_directory(tmp_path, LLAMA, tensors), LLAMA).dtype == np.float64


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    good = random_tensors(LLAMA)
    q = "model.layers.1.self_attn.q_proj.weight"
    cases = {
        r"q_proj\.weight is missing": {k: v for k, v in good.items() if k != q},
        r"q_proj\.weight and 1 more is missing": {
            k: v for k, v in good.items() if k not in (q, "lm_head.weight")
        },
        r"q_proj\.bias is none of a llama model's": good
        | {"model.layers.1.self_attn.q_proj.bias": np.zeros(24)},
        r"layers\.2\.mlp": good | {"model.layers.2.mlp.up_proj.weight": np.zeros((40, 24))},
        r"q_proj\.weight has shape \[12, 24\], not \[24, 24\]": good | {q: good[q][:12]},
        r"q_proj\.weight is of type int64": good | {q: good[q].astype(np.int64)},
    }
    for message, tensors in cases.items():
        with pytest.raises(CheckpointError, match=message) as error:
            HFReader(write_directory(tmp_path, LLAMA, tensors), LLAMA)
        assert error.value.exit_code == 4 and str(error.value).count("; ") == 2
    with pytest.raises(CheckpointError, match="is missing"):
        HFReader(write_directory(tmp_path, LLAMA, good), GPT2)


def test_weights_of_another_format(tmp_path: Path) -> None:
    write_directory(tmp_path, LLAMA, random_tensors(LLAMA))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"the file is not there; .*model\.safetensors"):
        HFReader(tmp_path, LLAMA)


def test_tokenizer_and_special_tokens_go_along(tmp_path: Path) -> None:
    source = write_directory(tmp_path / "source", LLAMA, random_tensors(LLAMA))
    config = json.loads((source / "config.json").read_text())
    config |= {"eos_token_id": 2, "minitrain_tokenizer": "bytes", "attention_dropout": 0.1}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("about another file")
    notices = convert(source, tmp_path / "copy")
    assert len(notices) == 1 and "attention_dropout 0.1" in notices[0]
    copied = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copied["eos_token_id"] == 2 and copied["minitrain_tokenizer"] == "bytes"
    assert sorted(os.listdir(tmp_path / "copy")) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_destination_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    check_hf_destination(tmp_path / "new" / "deep", LLAMA)
    (tmp_path / "empty").mkdir()
    check_hf_destination(tmp_path / "empty", LLAMA)
    assert os.listdir(tmp_path) == ["empty"]
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    for name, message in {
        "full": "not empty",
        "file": "a file or link of that name",
        "link": "a file or link of that name",
        "file/x": "cannot be made",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            check_hf_destination(tmp_path / name, LLAMA)
    with pytest.raises(CheckpointError, match="2 key/value heads for 4 heads"):
        check_hf_destination(tmp_path / "new", ModelConfig(**(vars(GPT2) | {"kv_heads": 2})))
    source = write_directory(tmp_path / "source", LLAMA, random_tensors(LLAMA))
    with pytest.raises(CheckpointError, match="not empty"):
        convert(source, tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["precious"]


def test_commit_does_not_overwrite_what_came_meanwhile(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    partial = partial_directory(directory)
    create_hf(partial, TIED, np.dtype(np.float32), None)
    directory.mkdir()
    (directory / "precious").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot be put in place .*; find them, complete, in .*out\.partial"
    ):
        commit_hf(partial, directory)
    assert os.listdir(directory) == ["precious"] and (partial / "model.safetensors").is_file()
    (directory / "precious").unlink()
    commit_hf(partial, directory)
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors"]


def test_leftovers_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    partial = partial_directory(tmp_path / "out")
    create_hf(partial, LLAMA, np.dtype(np.float64), None)
    norm = next(spec for spec in model_specs(LLAMA) if spec.name == "head.norm")
    HFWriter(partial, LLAMA).write(norm, whole(norm), np.full(norm.shape, 3.0))
    create_hf(partial, TIED, np.dtype(np.float32), None)
    commit_hf(partial, tmp_path / "out")
    assert not HFReader(tmp_path / "out", TIED).read(norm, whole(norm)).any()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        create_hf(tmp_path / "x", LLAMA, np.dtype(np.float32), None)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors["model.norm.weight"][3] = np.nan
    reader = HFReader(write_directory(tmp_path / "hf", LLAMA, tensors), LLAMA)
    for spec in model_specs(LLAMA):
        if spec.name != "head.norm":
            reader.read(spec, whole(spec))
            continue
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight has weights that are not finite"):
            reader.read(spec, whole(spec))
