"""The store of second moments: measured once, found again, never taken for another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.statistics
from errata.corpus import Corpus, read_corpus
from errata.errors import ErrataError
from errata.family import family_of
from errata.model import EditedModel
from errata.statistics import Store, moments_for, quick_tokens
from laws.bench import closeness, edited_model, quick, random_patch
from tiny import SENTENCES, tiny_tokenizer

CORPUS = Corpus("ours", SENTENCES)
OTHER = Corpus("other", SENTENCES[:4])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "moments")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The blocks of every measurement that was made."""
    calls: list[tuple[int, ...]] = []
    real = errata.statistics.measure

    def measure(model: Any, rows: Any, blocks: Any, **options: Any) -> Any:
        calls.append(tuple(blocks))
        return real(model, rows, blocks, **options)

    monkeypatch.setattr(errata.statistics, "measure", measure)
    return calls


def test_what_was_measured_is_not_measured_again(
    store: Store, measured: list[tuple[int, ...]]
) -> None:
    first = store.get(edited_model("gpt2"), CORPUS, (1, 2))
    again = store.get(edited_model("gpt2"), CORPUS, (2, 1))
    assert measured == [(1, 2)]
    for block in (1, 2):
        assert torch.equal(first[block].matrix, again[block].matrix)
        assert first[block].identity == again[block].identity
    store.get(edited_model("gpt2"), CORPUS, (1, 2, 3))
    assert measured == [(1, 2), (3,)]


def without_bos(edited: EditedModel) -> None:
    edited.tokenizer = tiny_tokenizer(bos=False)


def nudged(edited: EditedModel) -> None:
    with torch.no_grad():
        family_of(edited.model).write(edited.model, 3).weight[0, 0] += 1.0


def narrow(edited: EditedModel) -> None:
    edited.model.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("corpus", "options", "change"),
    [
        (OTHER, {}, None),
        (CORPUS, {"tokens": 100}, None),
        (CORPUS, {"length": 6}, None),
        (CORPUS, {}, without_bos),
        (CORPUS, {}, nudged),
        (CORPUS, {}, narrow),
    ],
    ids=["corpus", "tokens", "length", "tokenizer", "weights", "dtype"],
)
def test_what_was_measured_otherwise_is_measured_anew(
    corpus: Corpus,
    options: dict[str, int],
    change: Any,
    store: Store,
    measured: list[tuple[int, ...]],
) -> None:
    before = store.get(edited_model("gpt2"), CORPUS, (1,))[1]
    edited = edited_model("gpt2")
    if change is not None:
        change(edited)
    after = store.get(edited, corpus, (1,), **options)[1]
    assert len(measured) == 2
    assert after.identity != before.identity
    store.get(edited, corpus, (1,), **options)
    store.get(edited_model("gpt2"), CORPUS, (1,))
    assert len(measured) == 2


def test_lengths_that_the_model_cannot_read_are_one(
    store: Store, measured: list[tuple[int, ...]]
) -> None:
    store.get(edited_model("gpt2"), CORPUS, (1,), length=500)
    store.get(edited_model("gpt2"), CORPUS, (1,), length=1000)
    assert len(measured) == 1


def test_an_edited_model_is_measured_as_its_base(store: Store, tmp_path: Path) -> None:
    edited = edited_model("gpt2")
    edited.apply(random_patch(edited, 0, size=1.0))
    found = store.get(edited, CORPUS, (3,))[3]
    plain = Store(tmp_path / "another").get(edited_model("gpt2"), CORPUS, (3,))[3]
    assert found.identity == plain.identity
    assert torch.equal(found.matrix, plain.matrix)
    assert len(edited.patches) == 1


def test_the_best_is_the_one_with_most_tokens(store: Store) -> None:
    for tokens in (60, 200, 100):
        store.get(edited_model("gpt2"), CORPUS, (1, 2), tokens=tokens)
    found = store.best(edited_model("gpt2"), (1, 2))
    assert found is not None
    assert {block: moment.count for block, moment in found.items()} == {1: 200, 2: 200}
    assert store.best(edited_model("gpt2"), (1, 3)) is None


@pytest.mark.parametrize("change", [without_bos, nudged])
def test_the_best_is_never_anothers(change: Any, store: Store) -> None:
    store.get(edited_model("gpt2"), CORPUS, (1,))
    other = edited_model("gpt2")
    change(other)
    assert store.best(other, (1,)) is None
    assert store.best(edited_model("llama"), (1,)) is None
    assert store.best(edited_model("gpt2"), (1,)) is not None


def test_a_file_at_the_wrong_place_is_refused(store: Store) -> None:
    store.get(edited_model("gpt2"), CORPUS, (1,))
    store.get(edited_model("gpt2"), OTHER, (1,))
    (one, _), (two, _) = store.stored()
    one.write_bytes(two.read_bytes())
    with pytest.raises(ErrataError, match="measured on something else: corpus"):
        store.get(edited_model("gpt2"), CORPUS, (1,))
        store.get(edited_model("gpt2"), OTHER, (1,))


def test_a_damaged_file_does_not_hide_the_others(store: Store) -> None:
    store.get(edited_model("gpt2"), CORPUS, (1, 2))
    store.stored()[0][0].write_bytes(b"torn")
    assert len(store.stored()) == 1


def test_moments_are_found_or_asked_for(store: Store, tmp_path: Path) -> None:
    edited, method = edited_model("gpt2"), quick("memit")
    with pytest.raises(ErrataError, match="MEMIT needs second moments of blocks 1,2") as caught:
        moments_for(edited, method, store)
    assert caught.value.hints[0].startswith(
        "measure them once: errata stats tiny-gpt2 --blocks 1,2"
    )
    with pytest.raises(ErrataError) as caught:
        moments_for(edited, quick("rome"), store)
    assert caught.value.hints[-1] == "or do without: --no-second-moment"
    assert moments_for(edited, quick("rome", second_moment=False), store) == ({}, [])
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(SENTENCES * 2))
    moments, (line,) = moments_for(edited, method, store, str(corpus))
    assert moments[1].count == quick_tokens(edited, (1, 2)) == 5 * 56
    assert line == f"second moment: quick estimate, 280 tokens of {corpus}"
    moments, (line,) = moments_for(edited, method, store, str(corpus), tokens=99)
    assert line == f"second moment: 99 tokens of {corpus}"
    moments, (line,) = moments_for(edited, method, store)
    assert line == "second moment: stored, 280 tokens"
    unkept, _ = moments_for(edited, method, None, str(corpus), tokens=99)
    assert (
        closeness(
            unkept[1].matrix, store.get(edited, read_corpus(str(corpus)), (1,), tokens=99)[1].matrix
        )
        == 0
    )


def test_a_corpus_is_read_from_lines_or_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\n  \nZwölf.\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "One."}\n\n{"text": "Zwölf.", "id": 3}\n', "utf-8")
    texts = [read_corpus(str(tmp_path / name)) for name in ("a.txt", "b.jsonl")]
    assert texts[0].texts == texts[1].texts == ["One.", "Zwölf."]
    assert texts[0].digest == texts[1].digest != Corpus("c", ["One.Zwölf."]).digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.jsonl", '{"words": 1}', "cannot read the corpus"),
        ("a.jsonl", '{"text": 1}', "cannot read the corpus"),
        ("a.jsonl", "[1]", "cannot read the corpus"),
        ("a.jsonl", "{", "cannot read the corpus"),
    ],
    ids=["blank", "no_text", "number", "list", "torn"],
)
def test_a_corpus_that_is_none_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ErrataError, match=message):
        read_corpus(str(tmp_path / name))
    with pytest.raises(ErrataError, match="cannot read the corpus"):
        read_corpus(str(tmp_path / "nowhere.txt"))


def test_stored_moments_say_what_they_are(store: Store) -> None:
    moment = store.get(edited_model("gpt2"), CORPUS, (1,), tokens=100)[1]
    assert moment.identity is not None
    said = json.loads(moment.identity.model_dump_json())
    assert said["weight"] == "transformer.h.1.mlp.c_proj.weight"
    assert (said["tokens"], said["dtype"]) == (100, "float32")
    assert said["weights"] == edited_model("gpt2").base.weights
