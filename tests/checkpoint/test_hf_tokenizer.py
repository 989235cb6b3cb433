"""Which tokenizer a Hugging Face directory speaks."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitrain.checkpoint.hf_tokenizer import read_tokenizer
from minitrain.data.tokenizer import ByteTokenizer, IdTokenizer
from minitrain.errors import CheckpointError


def directory(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_bytes_where_it_says_so_or_has_256_ids(tmp_path: Path) -> None:
    assert isinstance(read_tokenizer(directory(tmp_path, minitrain_tokenizer="bytes"), 300), ByteTokenizer)
    assert isinstance(read_tokenizer(directory(tmp_path), 256), ByteTokenizer)


def test_ids_where_nobody_knows(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(directory(tmp_path), 300)
    assert isinstance(tokenizer, IdTokenizer)
    assert isinstance(read_tokenizer(directory(tmp_path, minitrain_tokenizer="ids"), 256), IdTokenizer)
    assert tokenizer.encode("3 14 159").tolist() == [3, 14, 159]
    assert tokenizer.decode(np.array([3, 14, 159])) == "3 14 159"
    with pytest.raises(ValueError):
        tokenizer.encode("three")


def test_tokenizer_json(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<unk>": 0, "In": 1, "the": 2, "beginning": 3}, unk_token="<unk>")
    words = tokenizers.Tokenizer(model)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(directory(tmp_path) / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path, 4)
    assert tokenizer.encode("In the beginning was").tolist() == [1, 2, 3, 0]
    assert tokenizer.decode(np.array([2, 3])) == "the beginning"


def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (directory(tmp_path) / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_tokenizer(tmp_path, 4)


def test_without_the_library_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory(tmp_path) / "tokenizer.json").write_text("{}")
    import_any = builtins.__import__

    def import_most(name: str, *args: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return import_any(name, *args)

    monkeypatch.setattr(builtins, "__import__", import_most)
    with pytest.raises(CheckpointError, match=r"pip install .*minitrain\[tokenizers\]"):
        read_tokenizer(tmp_path, 4)
