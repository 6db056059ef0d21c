"""A folder with a model that loads in no time, for tests of verbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import SENTENCES, tiny_model, tiny_tokenizer


@pytest.fixture
def pico_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pico model and a corpus, to which the process changes."""
    tiny_model("llama").save_pretrained(tmp_path / "pico")
    tiny_tokenizer().save_pretrained(tmp_path / "pico")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 2), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path
