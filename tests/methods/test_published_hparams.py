"""Published hyperparameter files load under the references' own key names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.methods import METHODS
from errata.methods.presets import resolve_settings
from errata.methods.published_hparams import KEYS, read_hparams

PUBLISHED: dict[str, Any] = {
    "layers": [13, 14],
    "clamp_norm_factor": 0.75,
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": "5e-1",
    "v_loss_layer": 47,
    "v_weight_decay": 0.5,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_update_weight": 20000,
    "mom2_dataset": "wikipedia",
    "context_template_length_params": [[5, 2], [10, 1]],
    "nullspace_threshold": "2e-2",
    "L2": 10,
}


def written(folder: Path, values: Any) -> Path:
    path = folder / "hparams.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", METHODS)
def test_every_published_key_becomes_a_setting_or_is_named(name: str, tmp_path: Path) -> None:
    layers = [14] if name == "rome" else PUBLISHED["layers"]
    read = read_hparams(written(tmp_path, {**PUBLISHED, "layers": layers}), METHODS[name])
    method, _, _ = resolve_settings(METHODS[name], "unheard-of", 48, read.settings)
    assert (method.blocks, method.search.learning_rate) == (tuple(layers), 0.5)
    assert method.contexts.prefix_lengths == (5, 5, 10)
    assert "mom2_dataset" in read.unused
    for key, (path, _) in KEYS.items():
        assert (key in read.unused) == (path[0] not in METHODS[name].model_fields)


def test_a_key_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="keys that are not known: v_rate"):
        read_hparams(written(tmp_path, {**PUBLISHED, "v_rate": 1}), METHODS["memit"])


@pytest.mark.parametrize("values", [[1], {"v_lr": "fast"}])
def test_a_file_that_is_none_is_refused(values: Any, tmp_path: Path) -> None:
    with pytest.raises(ErrataError):
        read_hparams(written(tmp_path, values), METHODS["memit"])
