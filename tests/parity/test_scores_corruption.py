"""A folder with one wrong score fails; one that is whole passes.

What is spoilt is changed in what is read, not on disk: every kind of figure that `check_scores`
and `check_texts` compare, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity.check_scores import check_states
from parity.check_texts import check_summaries, check_texts
from parity.recorded import Recorded, models_in

Path_ = tuple[str | int, ...]


class Spoilt(Recorded):
    """What is recorded, with other contents of one file."""

    contents: dict[str, Any]

    def json(self, topic: str) -> Any:
        return self.contents[topic] if topic in self.contents else super().json(topic)


def spoilt(whole: Recorded, topic: str, contents: Any) -> Spoilt:
    found = Spoilt(whole.folder, whole.name)
    found.__dict__["_loaded"] = whole._loaded
    found.contents = {topic: contents}
    return found


def wrong(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value} not"
    return value * 1.01 + 0.01


def changed(contents: Any, path: Path_) -> Any:
    """A copy in which the value at a path is wrong; `*` stands for the first of its place."""
    contents = copy.deepcopy(contents)
    place = contents
    for step in path[:-1]:
        place = place[next(iter(place)) if step == "*" else step]
    last = next(iter(place)) if path[-1] == "*" else path[-1]
    place[last] = wrong(place[last])
    return contents


def fails(check: Callable[[Recorded], None], recorded: Recorded) -> bool:
    try:
        check(recorded)
    except AssertionError:
        return True
    return False


@pytest.fixture(scope="module")
def whole(golden: Path) -> Recorded:
    """The first model that has summaries as well."""
    found = [Recorded(golden, name) for name in models_in(golden)]
    return next((one for one in found if one.has("summarize")), found[0])


PROMPTS: tuple[Path_, ...] = (
    *(
        ("counterfact", -1, f"{kind}_prompts_probs", -1, target)
        for kind in ("rewrite", "paraphrase", "neighborhood")
        for target in ("target_new", "target_true")
    ),
    *(
        (dataset, -1, f"{kind}_prompts_correct", -1)
        for dataset in ("counterfact", "zsre")
        for kind in ("rewrite", "paraphrase", "neighborhood")
    ),
)
TEXTS: tuple[Path_, ...] = (
    ("n_gram_entropy_single", 0),
    ("n_gram_entropy_mean",),
    ("n_gram_entropy_single_geom", 0),
    ("word_tokenize", 0, 0),
    ("perplexity", -1, "value"),
    ("generate_top1", "texts", 0),
    ("generate_top1_batched", "texts", -1),
    ("tfidf", "idf", -1),
    ("tfidf", "vocabulary", "*"),
    ("tfidf", "pairs", 0, "similarity"),
    ("tfidf", "consistency_texts_case0", 0),
)


@pytest.mark.parametrize("path", PROMPTS, ids=str)
def test_a_wrong_score_is_seen(whole: Recorded, path: Path_) -> None:
    states = whole.json("eval")
    states["states"] = {"pre": states["states"]["pre"]}
    assert fails(
        check_states, spoilt(whole, "eval", changed(states, ("states", "pre", "*", *path)))
    )


def test_a_wrong_score_after_an_edit_is_seen(whole: Recorded) -> None:
    states = whole.json("eval")
    for state in [name for name in states["states"] if name != "pre"]:
        one = {**states, "states": {"pre": {}, state: states["states"][state]}}
        assert not fails(check_states, spoilt(whole, "eval", one)), state
        path = ("states", state, "*", *PROMPTS[0])
        assert fails(check_states, spoilt(whole, "eval", changed(one, path))), state


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_a_wrong_figure_of_texts_is_seen(whole: Recorded, path: Path_) -> None:
    contents = whole.json("eval")
    assert fails(check_texts, spoilt(whole, "eval", changed(contents, path)))


def test_every_wrong_figure_of_a_summary_is_seen(whole: Recorded) -> None:
    contents = whole.json("summarize")
    assert not fails(check_summaries, spoilt(whole, "summarize", contents))
    for how, runs in contents.items():
        for name, value in runs[0].items():
            path: Path_ = (how, 0, name, 0) if isinstance(value, list) else (how, 0, name)
            assert fails(check_summaries, spoilt(whole, "summarize", changed(contents, path))), path
