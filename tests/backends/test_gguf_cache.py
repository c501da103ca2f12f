"""Headers of files that have not changed are read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.gguf_files import Shape, write_model

from backends.base import InvalidModelError
from backends.gguf_cache import HeaderCache
from backends.gguf_model import model_files
from backends.llama_cpp.settings import LlamaCppSettings


def test_a_header_is_read_once_while_its_file_stays_the_same(tmp_path: Path) -> None:
    cache, path = HeaderCache(), write_model(tmp_path / "model.gguf")
    first = cache.read((path,))
    assert cache.read((path,)) is first
    write_model(tmp_path / "other.gguf", Shape(n_layer=3)).replace(path)
    assert len(cache.read((path,)).tensors) > len(first.tensors)


def test_a_touched_file_is_read_again(tmp_path: Path) -> None:
    cache, path = HeaderCache(), write_model(tmp_path / "model.gguf")
    first = cache.read((path,))
    os.utime(path, ns=(1, 1))
    assert cache.read((path,)) is not first


def test_a_file_that_is_gone_is_not_answered_from_memory(tmp_path: Path) -> None:
    cache, path = HeaderCache(), write_model(tmp_path / "model.gguf")
    cache.read((path,))
    path.unlink()
    with pytest.raises(InvalidModelError, match="no such file"):
        cache.read((path,))


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    files = model_files(LlamaCppSettings(path=write_model(tmp_path / "parts", shards=3)))
    assert len(files) == 3
    cache = HeaderCache()
    first = cache.read(files)
    assert cache.read(files) is first
    os.utime(files[2], ns=(1, 1))
    assert cache.read(files) is not first


def test_no_more_headers_are_kept_than_there_is_room_for(tmp_path: Path) -> None:
    cache, paths = HeaderCache(2), [write_model(tmp_path / f"{index}.gguf") for index in range(3)]
    first = cache.read((paths[0],))
    assert [cache.read((path,)) for path in paths[1:]]
    assert cache.read((paths[0],)) is not first
