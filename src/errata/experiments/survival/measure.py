"""Asking one model everything that the matrix compares, and keeping it as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.data.case import Case
from errata.data.passages import Passage
from errata.data.templates import TemplateName
from errata.metrics.perplexity import read_texts
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.tasks import Task, answer_rows
from errata.metrics.teacher_forced import PromptScore, score_cases
from errata.models.families import family_of
from errata.models.hooks import Site, frozen
from errata.models.layerwise import read_at
from errata.models.tokens import TokenRow, encode, position_of
from errata.patches.edited_model import EditedModel

DISPLACED = 100
"""Edits whose activations are followed."""
ROUNDING = 1e-5
"""Moves below this share of a state are rounding."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    cases: Sequence[Case]
    """Those that are edited, the most of the matrix."""
    controls: Sequence[Case]
    """Those that never are."""
    tasks: Sequence[Task]
    passages: Sequence[Passage]
    template: TemplateName
    max_new_tokens: int

    def ask(self, edited: EditedModel, count: int | None = None) -> dict[str, Any]:
        """Return what a model says about the first `count` cases and all else, for JSON."""
        cases = [*self.cases[:count], *self.controls]
        scored = score_cases(edited, cases)
        edits = len(self.cases[:count])
        found: dict[str, Any] = {
            "edits": [_told(scores) for scores in scored[:edits]],
            "controls": [_known(scores[0]) for scores in scored[edits:]],
        }
        if self.passages:
            figures = read_texts(edited, self.passages).figures()
            found["perplexity"] = figures["token_perplexity"].model_dump()
        if self.tasks:
            found["tasks"] = {
                task.name: [
                    each.outcome
                    for each in answer_rows(
                        edited, task, self.template, max_new_tokens=self.max_new_tokens
                    )
                ]
                for task in self.tasks
            }
        return found


def _told(scores: Sequence[PromptScore]) -> dict[str, Any]:
    """Return what is kept of one edit: per kind which prompts came out right, and P of both."""
    told: dict[str, Any] = {
        kind: [_right(score) for score in scores if score.kind == kind] for kind in PROMPT_KINDS
    }
    told = {kind: [each for each in rights if each is not None] for kind, rights in told.items()}
    first = scores[0]
    told["said"] = bool(first.accurate)
    told["p_new"] = math.exp(-first.new.nll)
    told["p_true"] = None if first.true is None else math.exp(-first.true.nll)
    return told


def _right(score: PromptScore) -> bool | None:
    return score.success if score.success is not None else score.accurate


def _known(first: PromptScore) -> dict[str, Any]:
    """Return whether a fact that was not edited is still there."""
    if first.true is None:
        return {"known": not first.new.likeliest, "said": False}
    return {"known": first.true.nll < first.new.nll, "said": first.true.likeliest}


def states_of(edited: EditedModel, cases: Sequence[Case]) -> Tensor:
    """Return the states at the last subject token after every block: (blocks, cases, d), float32.

    Of the first `DISPLACED` cases.
    """
    rows = []
    for case in cases[:DISPLACED]:
        encoded = encode(edited.tokenizer, case.request.text)
        rows.append(TokenRow(encoded.ids, position_of(encoded, case.request.span, "subject_last")))
    family, model = family_of(edited.model), edited.model
    sites = [Site(family.block(model, i), "output") for i in range(family.block_count(model))]
    with frozen(model):
        return torch.stack([each.float().cpu() for each in read_at(model, rows, sites)])


def displacement(base: Tensor, edited: Tensor, tuned: Tensor) -> list[dict[str, list[float]]]:
    """Return, per block and edit, how far the edit and then the tuning moved a state.

    Lengths are shares of the state's own; `cosine` is that of the two moves: below 0 the tuning
    takes back what the edit did. Moves within rounding
    have none, told as 0.
    """
    found = []
    for was, then, now in zip(base.double(), edited.double(), tuned.double(), strict=True):
        edit, tune, size = then - was, now - then, was.norm(dim=-1)
        far, further = edit.norm(dim=-1) / size, tune.norm(dim=-1) / size
        cosine = (edit * tune).sum(-1) / (edit.norm(dim=-1) * tune.norm(dim=-1)).clamp(min=1e-12)
        cosine[(far < ROUNDING) | (further < ROUNDING)] = 0.0
        found.append({"edit": far.tolist(), "tune": further.tolist(), "cosine": cosine.tolist()})
    return found


def save_states(path: Path, **states: Tensor) -> None:
    """Keep states beside what was measured."""
    from errata.core.files import write_safetensors

    write_safetensors(path, states, {})


def read_states(path: Path) -> dict[str, Tensor]:
    """Read what `save_states` kept."""
    from safetensors.torch import load_file

    return load_file(path)
