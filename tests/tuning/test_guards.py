"""Mitigations: what they promise of the edited keys and positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.core.errors import ErrataError
from errata.experiments.tuning_run import run_tuning
from errata.models.families import weight_of
from errata.tuning.guards import ShiftPenalty, edited_rows, key_directions
from errata.tuning.train import tune
from tuning.pico import ROWS, pico, pico_patch, quick, weights


@pytest.mark.parametrize("method", ["lora", "full"])
def test_projected_updates_leave_the_answers_to_edited_keys(method: str, tmp_path: Path) -> None:
    settings = {"method": method, "modules": "q,up,down"}
    sizes = {}
    for project in (True, False):
        edited = pico()
        patch = pico_patch(edited)
        edited.apply(patch)
        before = weights(edited)
        tune(edited, ROWS, quick(project=project, **settings), tmp_path / f"work{project}")
        for name, update in patch.updates.items():
            change = weight_of(edited.model, name)[1].detach() - before[name]
            assert change.norm() > 1e-3
            seen = (change @ update.K).norm() / (change.norm() * update.K.norm())
            sizes.setdefault(project, []).append(float(seen))
    assert max(sizes[True]) < 1e-5 < 1e-2 < min(sizes[False])


def test_directions_span_the_keys() -> None:
    edited = pico()
    patch = pico_patch(edited)
    name, update = next(iter(patch.updates.items()))
    Q = key_directions([patch, patch], name)
    assert Q.shape == (56, 2)
    torch.testing.assert_close(Q @ (Q.T @ update.K.double()), update.K.double())


def test_the_penalty_holds_states_at_edited_positions(tmp_path: Path) -> None:
    def shift(weight: float) -> float:
        edited = pico()
        patch = pico_patch(edited)
        edited.apply(patch)
        ruler = ShiftPenalty.of(edited.model, edited.tokenizer, [patch], 1.0)
        assert float(ruler(0).detach()) < 1e-12
        settings = quick(shift_penalty=weight, learning_rate=2e-3, max_steps=16)
        tune(edited, ROWS, settings, tmp_path / f"{weight}")
        with torch.no_grad():
            return float(ruler(0))

    assert shift(100.0) < 0.5 * shift(0.0)


def test_the_penalty_is_the_mean_squared_move_over_length(tmp_path: Path) -> None:
    edited = pico()
    patch = pico_patch(edited)
    edited.apply(patch)
    ruler = ShiftPenalty.of(edited.model, edited.tokenizer, [patch], 2.0)
    rows = edited_rows(edited.tokenizer, [patch])
    edited.undo()
    expected = []
    for block in (1, 2):
        for row in rows:
            states = []
            for patched in (True, False):
                if patched:
                    edited.apply(patch)
                out = edited.model(torch.tensor([row.ids]), output_hidden_states=True)
                states.append(out.hidden_states[block + 1][0, row.position].detach())
                if patched:
                    edited.undo()
            was, now = states
            expected.append(float((now - was).square().sum() / was.square().sum()))
    with torch.no_grad():
        assert float(ruler(0)) == pytest.approx(2.0 * sum(expected) / 4, rel=1e-4)


@pytest.mark.slow
def test_reapplying_adds_the_patch_once_more(tmp_path: Path) -> None:
    found = {}
    for again in (False, True):
        edited = pico()
        patch = pico_patch(edited)
        edited.apply(patch)
        tune(edited, ROWS, quick(reapply=again), tmp_path / f"work{again}")
        found[again] = weights(edited)
    for name, once in found[False].items():
        more = patch.updates[name].delta() if name in patch.updates else 0.0
        assert torch.equal(found[True][name], once + more)


def test_what_cannot_be_guarded_is_told(tmp_path: Path) -> None:
    edited = pico()
    with pytest.raises(ErrataError, match="DoRA rescales whole rows"):
        quick(method="dora", project=True)
    with pytest.raises(ErrataError, match="no patch, so there are no edited positions"):
        tune(edited, ROWS, quick(shift_penalty=1.0), tmp_path)
    for guard, message in (
        ({"reapply": True}, "no patch, so there is nothing to reapply"),
        ({"project": True}, "no patch, so there are no keys to project off"),
        ({"shift_penalty": 1.0}, "no patch, so there are no edited positions"),
    ):
        with pytest.raises(ErrataError, match=message):
            run_tuning(edited, ROWS, quick(**guard), tmp_path)
    with pytest.raises(ErrataError, match="no block 9"):
        run_tuning(edited, ROWS, quick(blocks="9"), tmp_path)
    assert not (tmp_path / "tune").exists(), "no run is begun"
    edited.apply(pico_patch(edited))
    with pytest.raises(ErrataError, match="no edited matrix is tuned"):
        tune(edited, ROWS, quick(project=True, blocks="others"), tmp_path)
    assert edited.patches, "a refused tuning leaves the patches"
