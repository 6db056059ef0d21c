"""Comparison of causal traces: noise, tokens, answers, and the score of every cell.

What a case restores is read off its name: `case<i>.<kind>[.w<window>][.<variant>]`. In replace
mode the references take the score with nothing restored from *added* noise (defect C1), so
that one is held against ours of added noise, and ours has to be another. Where the references
raise (defect C4: subjects under SentencePiece), ours is held against full runs, cell by cell.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from errata.data.subject import SLOT, slotted
from errata.tracing.causal import trace_question
from errata.tracing.corruption import embedding_deviation, noise_of
from errata.tracing.question import Question, ask_model
from errata.tracing.settings import TraceSettings
from errata.tracing.trace import Trace
from parity.recorded import Part, Recorded
from plain_trace import answers, cell, noisy

NAME = re.compile(r"case(\d+)\.(hidden|mlp|attn)(?:\.w(\d+))?(?:\.(\w+))?")
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "replace": {"replace": True},
    "uniform": {"noise": "uniform"},
    "samples4": {"samples": 4},
    "subject_last": {"subject_last_only": True},
}


def check_trace(recorded: Recorded) -> None:
    """Every recorded trace of a model."""
    told, inputs = recorded.json("trace"), recorded.inputs("trace_cases")
    subjects = [case["subject"] for case in inputs]
    deviation = embedding_deviation(recorded.model, recorded.tokenizer, subjects)
    recorded.hold("trace", "states", "embedding_std", deviation, told["embedding_std"])
    recorded.hold("trace", "states", "noise", 3 * deviation, told["noise"])
    assert told["cases"], "trace.json names no cases"
    if recorded.has_tensors("trace"):
        _check_scores(recorded, told, inputs)
    else:
        _check_own(recorded, told, inputs)


def _check_scores(recorded: Recorded, told: Any, inputs: Any) -> None:
    tensors = recorded.tensors("trace")
    for name, entry in _entries(told, tensors).items():
        if name.endswith(".expect_mismatch"):
            case = inputs[int(name.removeprefix("case").partition(".")[0])]
            question = _asked(recorded, case, " Nowhere")
            assert entry == {"correct_prediction": question.known} == {"correct_prediction": False}
        else:
            _check_case(recorded, told, inputs, name, entry, tensors)
    tensors.assert_all_taken()


def _entries(told: Any, tensors: Part) -> dict[str, Any]:
    """Return the recorded cases; a variant with scores alone has the low and high of its case."""
    alone = [
        name.removesuffix(".scores")
        for name in tensors.tensors
        if name.endswith(".scores") and name.removesuffix(".scores") not in told["cases"]
    ]
    ends = ("low_score", "high_score")
    for name in alone:
        assert name.rpartition(".")[0] in told["cases"], f"{name} is no variant of a case"
    beside = {name: told["cases"][name.rpartition(".")[0]] for name in alone}
    return told["cases"] | {
        name: {end: entry[end] for end in ends} for name, entry in beside.items()
    }


def _asked(recorded: Recorded, case: Any, answer: str | None = None) -> Question:
    prompt, subject = case["prompt"], case["subject"]
    start = slotted(prompt, subject).index(SLOT)
    span = (start, start + len(subject))
    return ask_model(recorded.model, recorded.tokenizer, prompt, span, answer)


def _settings(told: Any, kind: str, width: str | None, variant: str | None) -> TraceSettings:
    given = {"kinds": (kind,), "samples": told["samples"], "noise_seed": 1}
    given |= {"window": int(width)} if width else {}
    return TraceSettings.of({**given, **VARIANTS[variant or ""]})


def _traced(recorded: Recorded, question: Question, settings: TraceSettings, level: float) -> Trace:
    return trace_question(recorded.model, recorded.tokenizer, question, settings, level)


def _check_case(
    recorded: Recorded, told: Any, inputs: Any, name: str, entry: Any, tensors: Part
) -> None:
    matched = NAME.fullmatch(name)
    assert matched, f"cannot tell what {name} is"
    number, kind, width, variant = matched.groups()
    assert f"{name}.scores" in tensors, f"{name} has no scores"
    case = inputs[int(number)]
    question, settings = _asked(recorded, case), _settings(told, kind, width, variant)
    ours = _traced(recorded, question, settings, told["noise"])
    if "input_ids" in entry:
        _check_tokens(recorded, question, ours, case, entry, name)
    recorded.hold("trace", "score", name, torch.tensor(ours.mean(kind)), tensors[f"{name}.scores"])
    recorded.hold("trace", "score", f"{name} high", ours.high, entry["high_score"])
    low = float(ours.low.mean())
    if settings.replace:
        added = settings.with_values(replace=False, subject_last_only=True)
        recorded_low = float(_traced(recorded, question, added, told["noise"]).low.mean())
        assert abs(low - recorded_low) > 1e-3, "replacing is not adding"
        low = recorded_low
    recorded.hold("trace", "score", f"{name} low", low, entry["low_score"])
    noise_name = f"case{number}.noise_unit"
    if noise_name in tensors and settings.noise == "gaussian":
        noise = noise_of(settings, question.subject[1] - question.subject[0], _width(recorded))
        expected = tensors[noise_name][: settings.samples]
        assert np.array_equal(noise, expected.numpy()), f"{name}: other noise"


def _width(recorded: Recorded) -> int:
    return int(recorded.model.config.hidden_size)


def _check_tokens(
    recorded: Recorded, question: Question, ours: Trace, case: Any, entry: Any, name: str
) -> None:
    assert (entry["prompt"], entry["subject"]) == (case["prompt"], case["subject"]), name
    assert entry["attribute"] == case["attribute"], name
    assert list(question.ids) == entry["input_ids"], name
    assert [recorded.tokenizer.decode([i]) for i in question.ids] == entry["input_tokens"], name
    assert list(question.subject) == entry["subject_range"], name
    assert recorded.tokenizer.decode(question.targets) == entry["answer"], name
    assert ours.answer == entry["answer_stripped"], name
    kind = entry["kind"] or "hidden"
    assert name.split(".")[1] == kind, name
    assert kind == "hidden" or ours.window == entry["window"], name


def _check_own(recorded: Recorded, told: Any, inputs: Any) -> None:
    """Where the references raise, ours is what full runs say."""
    errors = [entry["error"] for entry in told["cases"].values() if isinstance(entry, dict)]
    assert errors and all("substring not found" in error for error in errors), errors
    model, width, kind = recorded.model, 3, "mlp"
    for case in inputs:
        question = _asked(recorded, case)
        settings = TraceSettings(kinds=("hidden", kind), window=width, samples=2)
        ours = _traced(recorded, question, settings, told["noise"])
        first, end = question.subject
        noise = told["noise"] * noise_of(settings, end - first, _width(recorded))
        corrupt = noisy(model, question.subject, torch.tensor(noise))
        args = (model, question.ids, question.targets)
        low = answers(*args, settings.samples, [corrupt])
        recorded.hold("trace", "score", "low", torch.tensor(ours.low), low[1:])
        for name in settings.kinds:
            place = end - 1
            plain = [
                cell(*args, corrupt, settings.samples, name, place, block, width)
                for block in range(ours.blocks)
            ]
            scores = torch.tensor(ours.scores[name][place])
            recorded.hold("trace", "score", f"{case['subject']} {name}", scores, torch.stack(plain))
