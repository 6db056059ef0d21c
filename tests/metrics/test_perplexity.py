"""Perplexity: every token once, padding never, and the same number as lm-eval's wikitext."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.passages import articles, passage, read_passages, spaced_as_written
from errata.metrics.perplexity import Windowed, cut_for, read_texts, windows_of
from errata.patches.edited_model import EditedModel, load
from tiny import POSITIONS, SENTENCES, tiny_model, tiny_tokenizer

STORED = (
    " = Velmora = \n \n The harbour ( built in 1801 ) has a well @-@ known quay , and \" old \" "
    "boats . \n = = Harbour = = \n Its 1 @,@ 200 boats ' nets : all of them s ' . \n"
    " = Tarn = \n \n Tarn is an island ; its people 's songs are old . \n"
)  # fmt: skip


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (5, 1), (50, 50)])
def test_every_token_is_predicted_once_from_as_many_as_fit(window: int, stride: int) -> None:
    ids = list(range(1, 22))
    rows = windows_of(ids, 0, Windowed(window, stride))
    assert [token for row in rows for token in row.targets] == ids
    for row in rows:
        assert len(row.ids) <= window
        assert row.ids[1 - len(row.targets) :] == row.targets[:-1] or len(row.targets) == 1
        first = row.targets[0]
        assert row.ids[len(row.ids) - len(row.targets)] == first - 1
        assert len(row.ids) == min(window, row.targets[-1])


@torch.no_grad()
def test_padded_batches_of_texts_read_like_each_window_alone() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    texts = [passage(text) for text in SENTENCES]
    found = read_texts(EditedModel(model, tokenizer, "tiny"), texts, window=16, stride=5)
    total, count = 0.0, 0
    for text in SENTENCES:
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        done = 1
        while done < len(ids):
            end = min(done + (16 if done == 1 else 5), len(ids))
            seen = torch.tensor([ids[max(0, end - 17) : end]])
            says = model(input_ids=seen[:, :-1]).logits.double().log_softmax(-1)[0]
            for i in range(end - done):
                total -= float(says[-1 - i, ids[end - 1 - i]])
            count, done = count + end - done, end
    figures = found.figures()
    assert figures["token_perplexity"].n == count
    assert figures["token_perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-5)
    words = sum(len(text.split()) for text in SENTENCES)
    assert figures["word_perplexity"].value == pytest.approx(math.exp(total / words), rel=1e-5)
    size = sum(len(text.encode()) for text in SENTENCES)
    assert figures["byte_perplexity"].value == pytest.approx(math.exp(total / size), rel=1e-5)
    for figure in figures.values():
        assert figure.low < figure.value < figure.high


def test_articles_are_taken_apart_and_spaced_as_written(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text(STORED, encoding="utf-8")
    first, second = read_passages(str(path))
    assert (first.bytes + second.bytes, len(articles(STORED))) == (len(STORED.encode()), 2)
    assert '(built in 1801) has a well-known quay, and "old" boats.' in first.text
    assert "== Harbour ==" in first.text
    assert "Its 1,200 boats'nets: all of them s'." in first.text
    assert second.text.strip().endswith("its people's songs are old.")
    path.write_text("No titles here.", encoding="utf-8")
    assert read_passages(str(path)) == [("No titles here.", 3, 15)]


def test_windows_that_do_not_fit_are_refused() -> None:
    model = tiny_model("gpt2")
    assert cut_for(model) == (POSITIONS, POSITIONS)
    with pytest.raises(ErrataError, match="exceeds the model's context of 128"):
        cut_for(model, 129)
    with pytest.raises(ErrataError, match="skips tokens"):
        cut_for(model, 8, 9)


def test_the_verb_measures_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES), encoding="utf-8")
    arguments = ["ppl", "demo", "--text", str(tmp_path / "text.txt"), "--window", "32", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    found = json.loads(result.stdout)
    assert (found["window"], found["stride"], found["passages"]) == (32, 32, 1)
    assert set(found["summary"]["word_perplexity"]) == {"value", "low", "high", "n"}


@pytest.mark.slow
def test_word_perplexity_is_that_of_lm_eval(errata_data: Path, tmp_path: Path) -> None:
    """On real WikiText, with a window shorter than the articles and a real small model."""
    pytest.importorskip("lm_eval")
    from errata.metrics.lm_eval import run_harness

    stored = (errata_data / "text" / "wikitext2_raw_test_a.txt").read_text("utf-8")
    pages = articles(stored[:40_000])
    folder = tmp_path / "EleutherAI" / "wikitext_document_level" / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"page": page}) for page in pages]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    edited = load(str(errata_data / "models" / "stories260K"))
    theirs = run_harness(edited, ["wikitext"], mirror=tmp_path, add_bos=False)
    passages = [passage(page, wikitext=True) for page in pages]
    ours = read_texts(edited, passages).figures()
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ours[name].value == pytest.approx(theirs["wikitext"][name].value, rel=1e-5)


def test_the_spacing_rules_touch_nothing_else() -> None:
    assert spaced_as_written("A plain text, with (marks) and 'quotes'.") == (
        "A plain text, with (marks) and 'quotes'."
    )
