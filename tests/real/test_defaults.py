"""Methods with the settings that a model without a preset gets: edits take without any tuning."""

from __future__ import annotations

import pytest

from errata.cli.tour import known_cases, python_documentation
from errata.methods import METHODS
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.edit import compute_edit
from errata.methods.moments import quick_tokens
from errata.metrics.teacher_forced import score_cases
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store

pytestmark = pytest.mark.real
FACTS, SHARE = 10, 0.95


@pytest.mark.parametrize("key", METHODS)
def test_edits_with_default_settings_take(key: str, edited: EditedModel, store: Store) -> None:
    method = METHODS[key]
    blocks = family_of(edited.model).block_count(edited.model)
    chosen = method.settled(method.defaults_for(blocks))
    assert isinstance(chosen, ClosedForm)
    cases = known_cases(edited)[:FACTS]
    wanted = chosen.moment_blocks
    tokens = quick_tokens(edited, wanted)
    moments = store.get(edited, python_documentation(), wanted, tokens=tokens)
    size = chosen.batch_limit or len(cases)
    taken: list[bool] = []
    for start in range(0, len(cases), size):
        batch = cases[start : start + size]
        requests = [case.request for case in batch]
        edited.apply(compute_edit(edited, requests, chosen, moments=moments))
        taken += [scores[0].new.likeliest for scores in score_cases(edited, batch)]
        edited.undo()
    assert sum(taken) >= SHARE * len(taken), taken
