"""The store of second moments: measured once, found again, never taken for another's."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.statistics.store
from errata.core.errors import ErrataError
from errata.data.corpus import Corpus, read_corpus
from errata.methods.moments import moments_for, quick_tokens
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel
from errata.statistics.cost import pass_cost_of
from errata.statistics.measure import token_rows
from errata.statistics.second_moment import SecondMoment
from errata.statistics.store import Store
from errata.statistics.text import text_of
from laws.bench import bits, closeness, edited_model, quick, random_patch
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
    real = errata.statistics.store.measure

    def measure(model: Any, rows: Any, blocks: Any, **options: Any) -> Any:
        calls.append(tuple(blocks))
        return real(model, rows, blocks, **options)

    monkeypatch.setattr(errata.statistics.store, "measure", measure)
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
        family_of(edited.model).mlp_out(edited.model, 3).weight[0, 0] += 1.0


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
    assert caught.value.hints[-1] == "or do without: second_moment=False"
    assert moments_for(edited, quick("rome", second_moment=False), store) == ({}, [])
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(SENTENCES * 2))
    moments, (line, settled) = moments_for(edited, method, store, str(corpus))
    assert moments[1].count == quick_tokens(edited, (1, 2)) == 5 * 56
    assert line == f"second moment: quick estimate, 280 tokens of {corpus}"
    assert re.match(
        r"second moment of block [12]: the read vectors of \d+ held-out keys changed by \d+ %",
        settled,
    )
    moments, (line, _) = moments_for(edited, method, store, str(corpus), tokens=99)
    assert line == f"second moment: 99 tokens of {corpus}"
    moments, (line, again) = moments_for(edited, method, store)
    assert line == "second moment: stored, 280 tokens"
    assert again == settled, "what was measured with it is kept with it"
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
        ("a.txt", "\n \n", "contains no text"),
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


def test_text_behind_that_of_an_estimate_is_held_out() -> None:
    edited = edited_model("gpt2")
    rows, held_out = text_of(edited, CORPUS, 50, 64)
    everything = token_rows(edited.tokenizer, SENTENCES, 64)
    assert sum(map(len, rows)) == 50
    assert held_out == everything[len(rows) :]
    assert text_of(edited, CORPUS, 10_000, 64).held_out == []
    assert text_of(edited, CORPUS, None, 64) == (everything, None)


def test_one_without_text_behind_it_says_so(store: Store) -> None:
    settled = store.get(edited_model("gpt2"), CORPUS, (1,), tokens=10_000)[1].convergence
    assert settled is not None and not settled.held_out


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(tokens: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= tokens:
            raise Killed

    return progress


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one text, and the sums kept after each."""
    monkeypatch.setattr(errata.statistics.accumulate, "BUDGET", 1)
    kept = partial(errata.statistics.store.Checkpoint, every=0.0, clock=lambda: 0.0)
    monkeypatch.setattr(errata.statistics.store, "Checkpoint", kept)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("tokens", [None, 150])
def test_a_killed_measurement_goes_on_and_ends_with_the_same_bits(
    tokens: int | None, store: Store, tmp_path: Path
) -> None:
    expected = Store(tmp_path / "other").get(edited_model("gpt2"), CORPUS, (1, 2), tokens=tokens)
    with pytest.raises(Killed):
        store.get(edited_model("gpt2"), CORPUS, (1, 2), tokens=tokens, progress=killed_at(100))
    (left,) = store.folder.glob("*/.*.partial")
    assert not list(store.folder.glob("*/*.lock")) and not store.stored()
    lines: list[str] = []
    told: list[int] = []
    found = store.get(
        edited_model("gpt2"),
        CORPUS,
        (1, 2),
        tokens=tokens,
        progress=lambda done, total: told.append(done),
        say=lines.append,
    )
    assert lines and lines[0].startswith("resuming an interrupted measurement after ")
    assert told[0] >= 100
    for block, moment in found.items():
        assert bits(moment.matrix) == bits(expected[block].matrix)
        assert moment.convergence == expected[block].convergence
    assert not left.exists()
    assert {path.suffix for path in store.folder.glob("*/*")} == {".safetensors"}


@pytest.mark.usefixtures("small_steps")
def test_sums_of_a_killed_one_are_not_anothers(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        store.get(edited_model("gpt2"), CORPUS, (1, 2), progress=killed_at(100))
    other = edited_model("gpt2")
    nudged(other)
    lines: list[str] = []
    found = store.get(other, CORPUS, (1, 2), say=lines.append)
    expected = Store(tmp_path / "other").get(other, CORPUS, (1, 2))
    assert not lines
    assert bits(found[2].matrix) == bits(expected[2].matrix)


def test_a_measurement_that_another_is_at_is_waited_for(
    store: Store, measured: list[tuple[int, ...]]
) -> None:
    lines: list[str] = []
    started = threading.Event()

    def first() -> None:
        def progress(done: int, total: int) -> None:
            started.set()
            waited.wait(20)

        store.get(edited_model("gpt2"), CORPUS, (1, 2), progress=progress)

    def say(line: str) -> None:
        lines.append(line)
        waited.set()

    waited = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(20)
    found = store.get(edited_model("gpt2"), CORPUS, (2,), say=say)
    thread.join()
    assert lines == ["another process is measuring these second moments; waiting for it"]
    assert measured == [(1, 2)]
    assert set(found) == {2}


def test_a_full_disk_is_told_before_anything_is_measured(
    store: Store, measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    need = pass_cost_of(edited_model("gpt2").model, [(1, 2)], [1, 2], halves=False)
    free = need.disk + need.scratch
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=free - 1))
    with pytest.raises(ErrataError, match="second moments need"):
        store.get(edited_model("gpt2"), CORPUS, (1, 2))
    assert not measured
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=free))
    store.get(edited_model("gpt2"), CORPUS, (1, 2))
    assert measured


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("tokens", [None, 150])
def test_the_disk_that_is_needed_is_what_was_said(tokens: int | None, store: Store) -> None:
    edited = edited_model("gpt2")
    ahead = store.forecast(edited, CORPUS, (1, 2), tokens=tokens)
    assert ahead is not None and not store.folder.exists()
    most = 0

    def progress(done: int, total: int) -> None:
        nonlocal most
        most = max([most, *(path.stat().st_size for path in store.folder.glob("*/.*.partial"))])

    store.get(edited, CORPUS, (1, 2), tokens=tokens, progress=progress)
    headers = 4096
    assert ahead.cost.scratch / 2 <= most <= ahead.cost.scratch / 2 + headers
    kept = sum(path.stat().st_size for path in store.folder.glob("*/*.safetensors"))
    assert ahead.cost.disk <= kept <= ahead.cost.disk + headers
    assert store.forecast(edited, CORPUS, (1, 2), tokens=tokens) is None
    assert ahead.tokens == store.get(edited, CORPUS, (1,), tokens=tokens)[1].count


@pytest.mark.usefixtures("small_steps")
def test_a_killed_measurement_that_is_resumed_with_other_blocks_leaves_nothing(
    store: Store,
) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            store.get(edited_model("gpt2"), CORPUS, (1, 2), progress=killed_at(100))
    store.get(edited_model("gpt2"), CORPUS, (0,))
    assert list(store.folder.glob("*/.*.partial")), "it can still be resumed"
    store.get(edited_model("gpt2"), CORPUS, (1, 2, 3))
    assert {path.suffix for path in store.folder.glob("*/*")} == {".safetensors"}


@pytest.mark.usefixtures("small_steps")
def test_an_abandoned_checkpoint_of_another_measurement_is_removed(store: Store) -> None:
    with pytest.raises(Killed):
        store.get(edited_model("gpt2"), CORPUS, (1,), progress=killed_at(100))
    (left,) = store.folder.glob("*/.*.partial")
    store.get(edited_model("gpt2"), OTHER, (1,))
    assert left.exists()
    long_ago = left.stat().st_mtime - 15 * 86400
    os.utime(left, (long_ago, long_ago))
    store.get(edited_model("gpt2"), OTHER, (2,))
    assert not left.exists()


@pytest.mark.usefixtures("small_steps")
def test_temporary_files_of_a_killed_measurement_are_removed_and_no_others(store: Store) -> None:
    moment = store.get(edited_model("gpt2"), CORPUS, (1,))[1]
    with pytest.raises(Killed):
        store.get(edited_model("gpt2"), CORPUS, (1, 2), progress=killed_at(100))
    (checkpoint,) = store.folder.glob("*/.*.partial")
    (stored,) = store.folder.glob("*/*.safetensors")
    other = moment.identity.with_values(corpus=OTHER.digest, weight="")
    left = [unfinished(path) for path in (checkpoint, stored)]
    live = [unfinished(checkpoint.with_name(f".{other.digest}-1.0of1.partial"))]
    live.append(unfinished(stored.with_name("transformer.h.1.mlp.c_proj-0123.safetensors")))
    store.get(edited_model("gpt2"), CORPUS, (1,))
    assert all(path.exists() for path in (*left, *live)), "nothing is measured and no lock is held"
    store.get(edited_model("gpt2"), CORPUS, (1, 2))
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in live), "their writers may be running"
    long_ago = live[0].stat().st_mtime - 15 * 86400
    os.utime(live[0], (long_ago, long_ago))
    store.get(edited_model("gpt2"), CORPUS, (3,))
    assert [path.exists() for path in live] == [False, True]


def unfinished(path: Path) -> Path:
    """Leave the temporary file of a process that was killed while it wrote `path`."""
    temporary = path.with_name(f".{path.name}.a1b2c3d4.part")
    temporary.write_bytes(b"half of it")
    return temporary


def test_moments_stored_under_the_old_form_of_the_hash_are_found(
    store: Store, measured: list[tuple[int, ...]]
) -> None:
    edited = edited_model("gpt2")
    moment = store.get(edited, CORPUS, (1,))[1]
    assert moment.identity is not None
    (path,) = store.folder.glob("*/*.safetensors")
    old = moment.identity.old
    replace(moment, identity=old).save(path.with_name(f"{old.weight}-{old.digest}.safetensors"))
    path.unlink()
    assert torch.equal(store.get(edited, CORPUS, (1,))[1].matrix, moment.matrix)
    assert store.best(edited, (1,)) is not None
    assert len(measured) == 1
    other = edited_model("gpt2")
    nudged(other)
    assert store.best(other, (1,)) is None and store.missing(other, CORPUS, (1,)) == [1]


def test_headers_are_listed_without_reading_a_matrix_or_hashing_a_model(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = store.get(edited_model("gpt2"), CORPUS, (1,))[1]
    monkeypatch.setattr(SecondMoment, "load", None)
    (path,) = store.folder.glob("*/*.safetensors")
    assert store.headers() == [(path, moment.identity, moment.count, path.stat().st_size)]
    path.write_bytes(path.read_bytes()[:-1])
    assert store.headers() == []


def test_only_the_best_moments_are_loaded_and_each_text_is_hashed_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, corpus = edited_model("gpt2"), Corpus("counted", Counted(SENTENCES))
    blocks = (0, 1, 2, 3)
    for tokens in (50, 60, 70):
        store.get(edited, corpus, blocks, tokens=tokens)
    texts = corpus.texts
    assert isinstance(texts, Counted)
    assert texts.passes == 1 + 3, "one for the digest, one for each measurement"
    loaded, hashed = [], []
    load, tokenizer_hash = SecondMoment.load, errata.statistics.store.tokenizer_hash
    monkeypatch.setattr(SecondMoment, "load", lambda *a: loaded.append(a) or load(*a))
    monkeypatch.setattr(
        errata.statistics.store, "tokenizer_hash", lambda t: hashed.append(t) or tokenizer_hash(t)
    )
    moments_for(edited, quick("memit", blocks=blocks), store)
    assert len(loaded) == len(blocks)
    assert len(hashed) == 2, "whether there are any, and which"
    hashed.clear()
    assert store.missing(edited, corpus, blocks, tokens=50) == []
    assert len(hashed) == 1 and texts.passes == 4


class Counted:
    """Texts that count how often they are read."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.passes = texts, 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        return iter(self.texts)


def test_a_hub_corpus_is_read_one_text_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Rows:
        def __iter__(self) -> Iterator[dict[str, str]]:
            for text in ("", *SENTENCES, " "):
                read.append(text)
                yield {"text": text}

    monkeypatch.setattr("errata.data.corpus.hub_rows", lambda *_, **__: Rows())
    corpus = read_corpus("hf:someone/something")
    assert len(read) == 2, "up to the first text"
    assert corpus.digest == CORPUS.digest
    read.clear()
    text_of(edited_model("gpt2"), corpus, 10, 64)
    assert len(read) == len(SENTENCES) + 2, "the held-out text needs the rest"
