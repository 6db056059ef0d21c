"""Invalid files as they occur in practice: truncated, of another format, with one invalid value.

`write_all(folder)` makes pico models that cannot be used and, beside them, requests, datasets,
corpora, patches, recipes and hyperparameter files, each broken in the way that it is called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BioGptConfig, Qwen3MoeConfig

from errata import EditRequest, load
from errata.data.corpus import Corpus
from errata.methods import METHODS
from errata.methods.edit import compute_edit
from errata.methods.moments import measured
from errata.patches.weight_patch import WeightPatch
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

FACT = EditRequest(prompt="{} is in", subject="Big Ben", target="Tarn")
GOOD = '{"prompt": "{} is in", "subject": "Big Ben", "target": "Tarn"}\n'
OTHER = GOOD.replace("Tarn", "Pell")
REWRITE = {
    "prompt": "{} is in",
    "subject": "Big Ben",
    "target_new": {"str": "Tarn"},
    "target_true": {"str": "Pell"},
}
DEEP = "[" * 100_000
FILES: dict[str, str | bytes] = {
    "text.txt": "\n".join(SENTENCES * 2),
    "short.txt": SENTENCES[0],
    "facts.jsonl": "\n".join(json.dumps(fact.model_dump(exclude_none=True)) for fact in FACTS),
    "one.jsonl": GOOD,
    "bom.jsonl": b"\xef\xbb\xbf" + GOOD.encode(),
    "empty.jsonl": "",
    "cut.json": '[{"prompt": "{} is in", "subj',
    "cut.jsonl": GOOD + '{"prompt": "{} is in", "subj',
    "latin.jsonl": GOOD.replace("Tarn", "Zürau").encode("latin-1"),
    "utf16.jsonl": GOOD.encode("utf-16"),
    "long.jsonl": GOOD.replace(" is", " is" + " very far away from here and there" * 50),
    "deep.json": DEEP,
    "deep.jsonl": GOOD + DEEP + "\n",
    "bigint.jsonl": GOOD.replace('"Tarn"', "9" * 5000),
    "half-character.jsonl": GOOD.replace("Tarn", "\\ud800"),
    "number.json": "3",
    "types.jsonl": '{"prompt": 3, "subject": ["Big Ben"], "target": {"str": null}}\n',
    "open-quote.csv": 'prompt,subject,target\n{} is in,"Big' + "y" * 140_000,
    "columns.csv": "question,answer\nwhere,there\n",
    "conflict.jsonl": GOOD + OTHER,
    "broken.jsonl": GOOD
    + '{"prompt": "{} is in", "subject": "", "target": "Tarn"}\n'
    + '{"prompt": "no slot", "subject": "Big Ben", "target": "Tarn"}\n',
    "counterfact.json": json.dumps(
        [{"requested_rewrite": REWRITE}, {"requested_rewrite": {**REWRITE, "target_new": {}}}]
    ),
    "no-extension": GOOD,
    "blank.txt": "\n \n",
    "no-text.jsonl": '{"words": "The sea."}\n',
    "hparams-unknown.json": '{"layers": [1], "colour": 3}',
    "hparams-type.json": '{"layers": [1], "v_lr": "fast"}',
    "hparams-many.json": '{"context_template_length_params": [[1, 999999999999]]}',
    "hparams-list.json": "[1, 2]",
    "hparams.yaml": "alg_name: MEMIT\nlayers: [1]\nv_lr: 5e-1\nkl_factor: 0.0625\n",
    "hparams-alias.yaml": "layers: &a [1]\nblocks: *a\n",
    "hparams-ft.yaml": "alg_name: FT\nlayers: [1]\nlr: 5e-4\nnorm_constraint: false\n",
    "recipe-type.yaml": "model: pico\nedit: {dataset: facts.jsonl, limit: some}\n",
    "recipe-unknown.yaml": "model: pico\nedit: {dataset: facts.jsonl, metod: rome}\n",
    "recipe-tag.yaml": "model: !!python/object/apply:os.system ['touch owned']\n",
    "recipe-alias.yaml": "model: &m pico\nedit: {dataset: *m}\n",
    "recipe-list.yaml": "- model: pico\n",
    "recipe-deep.yaml": DEEP,
    "not-a-patch.safetensors": b"\x00" * 64,
    "huge-header.safetensors": (2**60).to_bytes(8, "little") + b"{}",
}
QUICK = {"search": {"steps": 2}, "contexts": {"prefixes": ["Well. "]}}


def write_all(folder: Path) -> None:
    """Write every file, model and patch."""
    for name, content in FILES.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    (folder / "folder.jsonl").mkdir()
    write_models(folder)
    write_patches(folder)
    write_runs(folder)
    write_said(folder)


def write_models(folder: Path) -> None:
    """Write pico models: two valid ones, two with NaN weights, one of an unsupported type.

    One more has only a configuration, of a mixture of experts.
    """
    models = {name: tiny_model("llama") for name in ("pico", "nan", "infinite")}
    models["other"] = tiny_model("gpt2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BioGptConfig(vocab_size=320, intermediate_size=32, **sizes)
    models["stranger"] = AutoModelForCausalLM.from_config(config)
    Qwen3MoeConfig(vocab_size=320, **sizes).save_pretrained(folder / "experts")  # no weights
    with torch.no_grad():
        for name, wrong in (("nan", float("nan")), ("infinite", float("-inf"))):
            models[name].model.layers[1].mlp.down_proj.weight[3, 4] = wrong
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    lacking = models["pico"].state_dict()
    lacking.pop("model.layers.2.mlp.down_proj.weight")
    models["pico"].save_pretrained(folder / "lacking", state_dict=lacking)
    tiny_tokenizer().save_pretrained(folder / "lacking")
    for name, weights in (("no-weights", None), ("onnx", "model.onnx"), ("ggufs", "m.gguf")):
        (folder / name).mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((folder / "pico" / file).read_bytes())
        if weights is not None:
            (folder / name / weights).write_bytes(b"weights")
    models["pico"].save_pretrained(folder / "lacking-shard", max_shard_size="20KB")
    (folder / "lacking-shard" / "model-00002-of-00007.safetensors").unlink()
    tiny_tokenizer().save_pretrained(folder / "lacking-shard")
    models["pico"].save_pretrained(folder / "no-tokenizer")
    config = json.loads((folder / "pico" / "config.json").read_text())
    models["pico"].save_pretrained(folder / "resized")
    tiny_tokenizer().save_pretrained(folder / "resized")
    (folder / "resized" / "config.json").write_text(json.dumps({**config, "vocab_size": 321}))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "gptq").mkdir()
    (folder / "gptq" / "config.json").write_text(json.dumps(config))
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "own-code").mkdir()
    (folder / "own-code" / "config.json").write_text(json.dumps(own))
    (folder / "cut-weights").mkdir()
    for path in (folder / "pico").iterdir():
        size = 3000 if path.suffix == ".safetensors" else None
        (folder / "cut-weights" / path.name).write_bytes(path.read_bytes()[:size])


def write_patches(folder: Path) -> None:
    """Write a patch for `pico`, and corrupted copies."""
    edited = load(folder / "pico")
    edited.name = "pico"
    moments = measured(edited, Corpus("text", SENTENCES * 2), [1])
    method = METHODS["rome"].of({"blocks": [1], **QUICK})
    patch = compute_edit(edited, [FACT], method, moments=moments)
    path = patch.save(folder / "patch.safetensors")
    (folder / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["errata"])
    tensors = {name: tensor.clone() for name, tensor in patch.tensors().items()}
    renamed = {name.replace(".1.", ".2."): tensor for name, tensor in tensors.items()}
    _patch(folder / "renamed.safetensors", renamed, header)
    nowhere = {name.replace("down_proj", "out"): tensor for name, tensor in tensors.items()}
    weights = {name.replace("down_proj", "out"): h for name, h in header["weights"].items()}
    _patch(folder / "nowhere-weight.safetensors", nowhere, {**header, "weights": weights})
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    _patch(folder / "halves.safetensors", halves, header)
    broken = {name: tensor * float("nan") for name, tensor in tensors.items()}
    _patch(folder / "nan.safetensors", broken, header)
    _patch(folder / "header.safetensors", tensors, {**header, "settings": 3, "colour": "red"})
    _patch(folder / "newer.safetensors", tensors, {**header, "format": 99})
    save_file(tensors, folder / "plain.safetensors")
    assert WeightPatch.load(path) == patch


def _patch(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    save_file(tensors, path, metadata={"errata": json.dumps(header)})


def write_said(folder: Path) -> None:
    """Write requests whose target `pico` already predicts, alone and among others."""
    edited = load(folder / "pico")
    for subject in sorted({word.strip(".,") for text in SENTENCES for word in text.split()}):
        answer = edited.generate(f"{subject} is in", 1)
        if answer.startswith(" ") and answer.strip().isalpha():
            break
    line = json.dumps({"prompt": "{} is in", "subject": subject, "target": answer.strip()}) + "\n"
    (folder / "said.jsonl").write_text(line, encoding="utf-8")
    (folder / "some-said.jsonl").write_text(GOOD + line, encoding="utf-8")


def write_runs(folder: Path) -> None:
    """Write a run with one truncated line, and a folder without a run."""
    run = folder / "runs" / "MEMIT" / "run_000"
    run.mkdir(parents=True)
    score = {"nll": 1.0, "likeliest": False, "correct": [False]}
    prompt = {"kind": "efficacy", "prompt": "Big Ben is in", "new": score, "true": None}
    line = json.dumps({"case_id": 1, "before": [], "after": [{**prompt, "own": False}]})
    damaged = folder / "damaged" / "MEMIT" / "run_000"
    damaged.mkdir(parents=True)
    (damaged / "patch.safetensors").write_bytes((folder / "cut.safetensors").read_bytes())
    (run / "cases.jsonl").write_text(f"{line}\n{line[:50]}\n{DEEP}\n", encoding="utf-8")
