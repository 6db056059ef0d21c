"""A tuning that fails leaves the model as it was: weights, patches, and how to undo them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.tuning.train import tune
from tuning.pico import ROWS, pico, pico_patch, quick, weights


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_exception_restores_weights_and_keeps_the_patches(method: str, tmp_path: Path) -> None:
    edited = pico()
    base = weights(edited)
    patch = pico_patch(edited)
    edited.apply(patch)
    before = weights(edited)

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(edited, ROWS, quick(method=method, max_steps=4), tmp_path / "work", progress=stop)
    after = weights(edited)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert edited.patches == [patch]
    edited.undo()
    after = weights(edited)
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())
