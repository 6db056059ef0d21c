"""A file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from errata.core.errors import ErrataError
from errata.core.files import remove_parts, replacing, write_safetensors, write_text


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    failure: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(failure), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise failure
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), replacing(tmp_path / "deep" / "file.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_folders_are_made_and_text_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "São Brás\n")
    assert path.read_bytes() == "São Brás\n".encode()


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.touch()
    write_text(tmp_path / "ours.txt", "")
    assert (tmp_path / "ours.txt").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("inner", ["there_is_a_file/file.txt", ""])
def test_a_path_that_cannot_be_written_is_refused_in_words(inner: str, tmp_path: Path) -> None:
    (tmp_path / "there_is_a_file").touch()
    path = tmp_path / inner if inner else tmp_path
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ErrataError, match="cannot write") as caught:
        write_text(path, "text")
    assert "permissions" in caught.value.hints[0]
    assert sorted(os.listdir(tmp_path)) == before


def test_tensors_are_written_the_same_every_time(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2)}
    for name, held in (("one", tensors), ("two", dict(reversed(tensors.items())))):
        write_safetensors(tmp_path / name, held, {"errata": "{}"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_a_killed_writer_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        remove_parts(tmp_path)
        assert not temporary.exists()
        raise KeyboardInterrupt
