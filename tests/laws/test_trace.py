"""A trace is what full runs say, cell by cell, for every family and every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from errata.core.errors import ErrataError
from errata.models.families import family_of
from errata.models.recorded_run import RecordedRun, contributions
from errata.tracing.causal import trace_question
from errata.tracing.corruption import noise_of
from errata.tracing.memory import Room
from errata.tracing.question import Question, ask_model
from errata.tracing.settings import TRACE_KINDS, TraceSettings
from errata.tracing.trace import Trace
from laws.bench import edited_model, found, over_all, untidy
from plain_trace import answers, cell, noisy
from tiny import BLOCKS, FACTS

LEVEL = 0.5


def asked(model_type: str, *, several: bool = True, **how: Any) -> tuple[Any, Question]:
    edited, fact = edited_model(model_type, **how), FACTS[3 if several else 2]
    answer = fact.answer if several else None
    question = ask_model(edited.model, edited.tokenizer, fact.text, fact.span, answer)
    if several:  # two tokens of it: all of them together are too unlikely for float32
        ids = question.ids[: question.length + 1]
        question = replace(question, ids=ids, targets=question.targets[:2], said=question.said[:2])
    return edited, question


def traced(edited: Any, question: Question, settings: TraceSettings, **how: Any) -> Trace:
    return trace_question(edited.model, edited.tokenizer, question, settings, LEVEL, **how)


def corners(question: Question) -> list[int]:
    """Return a token before the subject, its first and last, the next one and the last of all."""
    first, end = question.subject
    return sorted({max(0, first - 1), first, end - 1, end, question.length - 1})


def assert_is_full_runs(
    edited: Any, question: Question, settings: TraceSettings, width: int, tokens: list[int]
) -> None:
    """Hold every cell of some tokens against a full run of its own."""
    ours = traced(edited, question, settings)
    model, (first, end) = edited.model, question.subject
    noise = LEVEL * noise_of(settings, end - first, model.config.get_text_config().hidden_size)
    corrupt = noisy(model, question.subject, torch.tensor(noise), settings.replace)
    args = (model, question.ids, question.targets)
    said = answers(*args, settings.samples, [corrupt])
    np.testing.assert_allclose(ours.low, said[1:], rtol=1e-5)
    np.testing.assert_allclose(ours.high, said[0], rtol=1e-5)
    for kind in settings.kinds:
        assert np.ptp(ours.scores[kind][end - 1]) > 0, kind
        for token in tokens:
            for block in range(BLOCKS):
                full = cell(*args, corrupt, settings.samples, kind, token, block, width)
                at = f"{kind}, token {token}, block {block}"
                np.testing.assert_allclose(ours.scores[kind][token, block], full, 1e-5, err_msg=at)


@over_all
def test_it_is_every_cell_run_in_full(model_type: str) -> None:
    edited, question = asked(model_type)
    settings = TraceSettings(kinds=TRACE_KINDS, window=3, samples=2)
    assert len(question.targets) > 1
    assert_is_full_runs(edited, question, settings, 3, corners(question))


@pytest.mark.slow
@over_all
@pytest.mark.parametrize("width", [1, 2, 4])
def test_it_is_every_cell_run_in_full_with_every_window(model_type: str, width: int) -> None:
    edited, question = asked(model_type)
    settings = TraceSettings(kinds=TRACE_KINDS, window=width, samples=3)
    assert_is_full_runs(edited, question, settings, width, list(range(question.length)))


@pytest.mark.parametrize("model_type", ["gpt2", "gptj", "gemma2"])
@pytest.mark.parametrize(
    "how", [{"replace": True}, {"noise": "uniform"}, {"samples": 1, "noise_seed": 5}], ids=str
)
def test_every_corruption_is_that_of_full_runs(model_type: str, how: dict[str, Any]) -> None:
    edited, question = asked(model_type, several=False, bos=False)
    settings = TraceSettings.of({"kinds": ("hidden", "attn"), "window": 2, "samples": 2, **how})
    assert_is_full_runs(edited, question, settings, 2, corners(question)[1:3])


@over_all
def test_the_model_is_left_as_found(model_type: str) -> None:
    edited, question = asked(model_type)
    untidy(edited.model)
    before = found(edited.model)
    traced(edited, question, TraceSettings(kinds=TRACE_KINDS, samples=1))
    assert found(edited.model) == before


def test_how_much_runs_at_once_does_not_matter() -> None:
    edited, question = asked("gptj")
    settings = TraceSettings(kinds=TRACE_KINDS, window=3, samples=3)
    whole, apart = traced(edited, question, settings), traced(edited, question, settings, memory=1)
    np.testing.assert_allclose(apart.low, whole.low, rtol=1e-5)
    for kind in TRACE_KINDS:
        np.testing.assert_allclose(apart.scores[kind], whole.scores[kind], rtol=1e-5)
        np.testing.assert_allclose(apart.first_scores[kind], whole.first_scores[kind], rtol=1e-5)


@over_all
def test_memory_is_known_before(model_type: str) -> None:
    """What is kept takes as much as was said, and what fits is a matter of the budget alone."""
    edited, question = asked(model_type)
    model, ids = edited.model, torch.tensor([question.ids] * 3)
    room = Room.of(model, len(question.ids), len(question.targets), contributions=True)
    run = RecordedRun.of(model, ids)
    modules = [family_of(model).mlp(model, block) for block in range(BLOCKS)]
    parts = contributions(model, ids, modules, {})
    held = [*run.states, *(t for pair in run.cache for t in pair), *parts.outputs, *parts.exchanged]
    assert sum(tensor.numel() * tensor.itemsize for tensor in held) == 3 * room.recorded
    assert room.runs_within(11 * room.recorded) == 10 and room.runs_within(1) == 1
    least = room.carried + 4 * room.token
    assert room.rows_within(5 * least, 4) == 5 and room.rows_within(1, 4) == 1


def test_progress_reaches_its_end() -> None:
    edited, question = asked("llama")
    seen: list[tuple[int, int]] = []
    settings = TraceSettings(kinds=("hidden", "mlp"), samples=2)
    traced(edited, question, settings, memory=1, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen) and len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


def test_the_first_token_is_scored_besides() -> None:
    """What a whole answer's trace says of its first token is that token's own trace."""
    edited, question = asked("llama")
    settings = TraceSettings(kinds=TRACE_KINDS, window=2, samples=2)
    whole = traced(edited, question, settings)
    ids = question.ids[: question.length]
    one = replace(question, ids=ids, targets=question.targets[:1], said=question.said[:1])
    first = traced(edited, one, settings)
    assert not first.first_scores and first.first_low is None
    assert whole.first_low is not None
    np.testing.assert_allclose(whole.first_low, first.low, rtol=1e-5)
    assert whole.first_high == pytest.approx(first.high, rel=1e-5)
    for kind in TRACE_KINDS:
        np.testing.assert_allclose(whole.first_scores[kind], first.scores[kind], rtol=1e-5)
        assert (whole.scores[kind] < first.scores[kind]).all()


def test_the_last_token_of_the_subject_alone() -> None:
    edited, question = asked("gpt2")
    settings = TraceSettings(kinds=TRACE_KINDS, window=2, samples=2)
    everywhere = traced(edited, question, settings)
    alone = traced(edited, question, settings.with_values(subject_last_only=True))
    last = question.subject[1] - 1
    assert alone.places == (last,) and everywhere.places == tuple(range(question.length))
    for kind in TRACE_KINDS:
        np.testing.assert_array_equal(alone.scores[kind][0], everywhere.scores[kind][last])


def test_where_nothing_was_corrupted_nothing_is_restored() -> None:
    edited, question = asked("gptj")
    ours = traced(edited, question, TraceSettings(kinds=TRACE_KINDS, samples=2))
    assert question.subject[0] > 0
    for kind in TRACE_KINDS:
        before = ours.scores[kind][: question.subject[0]]
        np.testing.assert_array_equal(before, np.broadcast_to(ours.low, before.shape))
        end = ours.scores[kind][: question.length - 1, -1]
        if "frozen" in kind or kind == "hidden":
            np.testing.assert_array_equal(end, np.broadcast_to(ours.low, end.shape))
    assert ours.first_high is not None
    np.testing.assert_allclose(ours.first_scores["hidden"][-1, -1], ours.first_high, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("several", [True, False])
def test_a_file_holds_all_of_it(tmp_path: Path, suffix: str, several: bool) -> None:
    edited, question = asked("llama", several=several)
    ours = traced(edited, question, TraceSettings(samples=2))
    path = tmp_path / f"trace{suffix}"
    ours.save(path)
    again = Trace.load(path)
    assert again.as_json() == ours.as_json()
    for mine, other in ((ours.scores, again.scores), (ours.first_scores, again.first_scores)):
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[kind], other[kind]) for kind in mine)
    assert np.array_equal(ours.low, again.low)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ErrataError, match="not a trace"):
        Trace.load(path)


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    edited, question = asked("llama")
    ours = traced(edited, question, TraceSettings(samples=2))
    ours.save(tmp_path / "trace.npz")
    held = np.load(tmp_path / "trace.npz", allow_pickle=False)
    assert np.array_equal(held["scores.mlp"], ours.scores["mlp"])
    assert json.loads(str(held["meta"]))["answer"] == ours.answer
