"""Published hyperparameter files load under the references' own key names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

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


EASYEDIT = """\
alg_name: "MEMIT"
model_name: "./hugging_cache/gpt2-xl"
stats_dir: "./data/stats"
# a comment
device: 0
layers: [13, 14, 15, 16, 17]
clamp_norm_factor: 0.75
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 1e-3
kl_factor: 0.0625
mom2_adjustment: true
mom2_update_weight: 20000
rewrite_module_tmp: "transformer.h.{}.mlp.c_proj"
lm_head_module: "transformer.wte"
mom2_n_samples: 100000
model_parallel: false
fp16: false
use_chat_template: true
enable_thinking: false
"""


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_yaml_file_of_easyedit_loads_like_json(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"gpt2-xl{suffix}"
    path.write_text(EASYEDIT)
    read = read_hparams(path, METHODS["memit"])
    values = {**yaml.safe_load(EASYEDIT), "v_lr": 0.5, "v_weight_decay": 0.001}
    assert read == read_hparams(written(tmp_path, values), METHODS["memit"])
    search = read.settings["search"]
    assert (search["learning_rate"], search["weight_decay"]) == (0.5, 0.001)
    assert read.settings["blocks"] == [13, 14, 15, 16, 17]
    assert {"alg_name", "device", "use_chat_template", "enable_thinking"} <= set(read.unused)


def test_keys_of_another_algorithm_are_named_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ft.yaml"
    path.write_text('alg_name: "FT"\nlayers: [21]\nlr: 5e-4\nnorm_constraint: false\n')
    with pytest.raises(ErrataError, match="keys that are not known: lr, norm_constraint") as caught:
        read_hparams(path, METHODS["memit"])
    assert "the file is for FT, and the method is MEMIT" in caught.value.hints[0]


def test_a_file_of_another_method_is_an_error_that_names_both(tmp_path: Path) -> None:
    for made_for, hint in (("ROME", "--method rome"), ("PMET", "remove alg_name")):
        values = {"alg_name": made_for, "layers": [17], "v_lr": 0.5}
        with pytest.raises(ErrataError, match=f"is for {made_for}, not for MEMIT") as caught:
            read_hparams(written(tmp_path, values), METHODS["memit"])
        assert any(hint in each for each in caught.value.hints)
    for name in ("rome", "ROME"):
        path = written(tmp_path, {"alg_name": name, "layers": [17]})
        assert read_hparams(path, METHODS["rome"]).unused == ("alg_name",)
    path = written(tmp_path, {"alg_name": "AlphaEdit", "layers": [17]})
    assert read_hparams(path, METHODS["alphaedit"]).settings == {"blocks": [17]}
    assert read_hparams(written(tmp_path, {"layers": [17]}), METHODS["memit"]).unused == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers: [1]\nv_lr: {", "line 2"),
        ("layers: &a [1]\nfact_token: *a", "aliases"),
        ("a: !!python/object/apply:os.system ['touch owned']", "tag"),
        ("layers: [1]\nlayers: [2]", "occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("- 1", "holds no object"),
        ("", "holds no object"),
        ("2: 3", "keys that are not known: 2"),
    ],
)
def test_a_yaml_file_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hparams.yaml"
    path.write_text(text)
    with pytest.raises(ErrataError, match=words) as caught:
        read_hparams(path, METHODS["memit"])
    assert caught.value.hints and not (tmp_path / "owned").exists()


def test_a_key_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="keys that are not known: v_rate"):
        read_hparams(written(tmp_path, {**PUBLISHED, "v_rate": 1}), METHODS["memit"])


@pytest.mark.parametrize("values", [[1], {"v_lr": "fast"}])
def test_a_file_that_is_none_is_refused(values: Any, tmp_path: Path) -> None:
    with pytest.raises(ErrataError):
        read_hparams(written(tmp_path, values), METHODS["memit"])
