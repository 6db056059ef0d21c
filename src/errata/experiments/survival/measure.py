"""Scoring one model on everything that the matrix compares, as JSON values."""

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
"""Number of edits whose hidden states are recorded."""
ROUNDING = 1e-5
"""Displacements below this share of a state's norm are regarded as rounding errors."""


@dataclass(frozen=True)
class Questions:
    """Everything on which each model is scored."""

    cases: Sequence[Case]
    """Edited cases, as many as the largest number of edits in the matrix."""
    controls: Sequence[Case]
    """Control cases, which are never edited."""
    tasks: Sequence[Task]
    passages: Sequence[Passage]
    template: TemplateName
    max_new_tokens: int

    def ask(self, edited: EditedModel, count: int | None = None) -> dict[str, Any]:
        """Return the scores on the first `count` cases and everything else, as JSON values."""
        cases = [*self.cases[:count], *self.controls]
        scored = score_cases(edited, cases)
        edits = len(self.cases[:count])
        found: dict[str, Any] = {
            "edits": [_edit_record(scores) for scores in scored[:edits]],
            "controls": [_control_record(scores[0]) for scores in scored[edits:]],
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


def _edit_record(scores: Sequence[PromptScore]) -> dict[str, Any]:
    """Return the record of one edit: success per prompt, by kind, and P of both targets."""
    record: dict[str, Any] = {
        kind: [_success(score) for score in scores if score.kind == kind] for kind in PROMPT_KINDS
    }
    record = {kind: [each for each in some if each is not None] for kind, some in record.items()}
    first = scores[0]
    record["said"] = bool(first.accurate)
    record["p_new"] = math.exp(-first.new.nll)
    record["p_true"] = None if first.true is None else math.exp(-first.true.nll)
    return record


def _success(score: PromptScore) -> bool | None:
    return score.success if score.success is not None else score.accurate


def _control_record(first: PromptScore) -> dict[str, Any]:
    """Return whether the model still knows a fact that was not edited."""
    if first.true is None:
        return {"known": not first.new.likeliest, "said": False}
    return {"known": first.true.nll < first.new.nll, "said": first.true.likeliest}


def states_of(edited: EditedModel, cases: Sequence[Case]) -> Tensor:
    """Return the hidden states at the last subject token after every block.

    (blocks, cases, d), float32, for the first `DISPLACED` cases.
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
    """Return, per block and edit, the displacement of a state by the edit and by the tuning.

    Displacements are relative to the norm of the base model's state. `cosine` is the cosine of the
    two displacement vectors: where it is negative, the tuning reverts the edit. It is 0 where
    either displacement is below `ROUNDING`.
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
    """Write hidden states to a safetensors file, by name."""
    from errata.core.files import write_safetensors

    write_safetensors(path, states, {})


def read_states(path: Path) -> dict[str, Tensor]:
    """Read the hidden states that `save_states` wrote."""
    from safetensors.torch import load_file

    return load_file(path)
