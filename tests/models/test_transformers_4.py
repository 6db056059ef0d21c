"""Merged checkpoints under Transformers 4.57: the same logits and the same tokens as here.

Transformers 4 is installed by pip into a folder of its own that comes before the environment's,
whose torch it uses. Without pip's index the tests are skipped. Attention is "eager", because with
"sdpa" version 4 ignores the soft-capping of Gemma 2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from errata.models.older_form import write_older_form
from errata.patches.edited_model import EditedModel, load
from errata.patches.export import export_merged
from laws.bench import random_patch
from patches.folders import IDS, logits, saved_base
from tiny import CONFIGS, SENTENCES, tiny_tokenizer

pytestmark = pytest.mark.slow

PACKAGES = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
READ = """
import json, sys, torch, transformers
from safetensors.torch import save_file
assert transformers.__version__ == "4.57.6", transformers.__version__
folders, ids, sentences = json.loads(sys.stdin.read())
for folder in folders:
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, torch_dtype="auto", attn_implementation="eager").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(sentences)["input_ids"]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids)).logits
    flat = torch.tensor([token for each in tokens for token in each])
    save_file({"logits": out.contiguous(), "tokens": flat}, folder + "/read.safetensors")
"""
NEWER = ("ministral3", "qwen3_5_text")
"""Types that version 4.57 does not have."""
OTHERWISE = ("apertus", "falcon, alibi")
"""Models that version 4.57 computes otherwise: it keeps the parameters of Apertus' activation in
bfloat16, and its eager attention treats Falcon's ALiBi other than its sdpa does."""
THETA = 777.0
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Transformers 4.57; return the folder that contains it."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install Transformers 4: {done.stderr.strip().splitlines()[-1]}")
    return folder


def check(transformers_4: Path, exports: dict[Path, EditedModel]) -> None:
    """Compare what Transformers 4 reads from folders with the models that were exported."""
    given = json.dumps([[str(each) for each in exports], IDS.tolist(), list(SENTENCES)])
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=given,
        env={**os.environ, "PYTHONPATH": str(transformers_4)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder, edited in exports.items():
        read = load_file(folder / "read.safetensors")
        ids = edited.tokenizer(list(SENTENCES))["input_ids"]
        assert read["tokens"].tolist() == [token for each in ids for token in each], folder
        torch.testing.assert_close(read["logits"], logits(edited.model), rtol=1e-4, atol=1e-4)


def export(base: str, out: Path) -> EditedModel:
    edited = load(base)
    edited.apply(random_patch(edited, 1))
    export_merged(edited, out)
    return edited


def test_every_family_reads_the_same(transformers_4: Path, tmp_path: Path) -> None:
    exports = {}
    for number, model_type in enumerate(name for name in CONFIGS if name not in NEWER + OTHERWISE):
        base, out = tmp_path / f"base{number}", tmp_path / f"out{number}"
        write_older_form(saved_base(model_type, base))
        exports[out] = export(str(base), out)
    check(transformers_4, exports)


def test_theta_and_its_scaling_are_read(transformers_4: Path, tmp_path: Path) -> None:
    exports = {}
    for name, rotary in (("theta", {"rope_theta": THETA}), ("scaled", SCALED)):
        base = saved_base("llama", tmp_path / name)
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "default", **rotary}
        (base / "config.json").write_text(json.dumps(config))
        write_older_form(base)
        exports[tmp_path / f"{name}.out"] = export(str(base), tmp_path / f"{name}.out")
    check(transformers_4, exports)
    with pytest.raises(AssertionError):  # θ has an effect on these logits
        check(transformers_4, dict(zip(exports, reversed(exports.values()), strict=True)))


def test_the_demo_model_and_a_gguf_file_read_the_same(
    transformers_4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer())
    sources = {"demo": "demo", "gguf": str(tmp_path / "m.gguf")}
    check(transformers_4, {tmp_path / n: export(s, tmp_path / n) for n, s in sources.items()})
