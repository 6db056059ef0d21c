"""What errata does with files of strangers, and what it may never do while it reads them.

`Strangers(folder).meet(kind, data)` writes the bytes as a file of that kind and uses it as the
verbs do. It may raise `ErrataError`; any other exception, any code that is unpickled or
started, and any file that is opened for writing outside the folder is a finding.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from errata import ErrataError, load, read_requests
from errata.data.corpus import read_corpus
from errata.data.datasets import load_cases
from errata.data.reference_texts import read_references
from errata.data.request import check_batch
from errata.experiments.published_results import published_summary
from errata.experiments.recipe.schema import read_recipe
from errata.experiments.results import read_runs
from errata.experiments.run_folder import finished_run, run_folder
from errata.methods import METHODS
from errata.methods.preset_files import read_preset
from errata.methods.presets import settings_for
from errata.methods.published_hparams import read_hparams
from errata.metrics.prompts import prompts_of
from errata.patches.adapter import read_adapter
from errata.patches.base import load_edit
from errata.statistics.second_moment import SecondMoment
from laws.kinds import EDITS, edits_of
from wrong_files import FILES, write_models, write_patches

CORPUS = Path(__file__).parent / "corpus"
STARTS = {
    "pickle.find_class",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.spawn",
    "socket.connect",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes what the interpreter is asked to open, start or unpickle while it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in STARTS:
            self.seen.append(f"{event} {arguments!r:.80}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITES:
            self._wrote(event, arguments[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.rename"):
            self._wrote(
                event, arguments[1] if event in ("os.symlink", "os.rename") else arguments[0]
            )

    def _wrote(self, event: str, path: Any) -> None:
        place = Path(os.path.abspath(os.fsdecode(path)))
        if place.parts[:2] != ("/", "dev") and not place.is_relative_to(self.folder):
            self.seen.append(f"{event} {place}")


class Strangers:
    """A user's folder, where strangers' files are met."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        for name, content in FILES.items():
            data = content if isinstance(content, bytes) else content.encode()
            (self.folder / name).write_bytes(data)
        write_models(self.folder)
        write_patches(self.folder)
        self.edited = load(self.folder / "pico")
        for name, edit in edits_of(self.edited).items():
            edit.save(self.folder / f"{name}.safetensors")
        self.watch = Watch(self.folder)
        self.inputs = 0

    def meet(self, kind: str, data: bytes) -> str:
        """Use a file as a verb does; return what was found, or "" when all is well."""
        name, use = KINDS[kind]
        place = self.folder / "stranger"
        shutil.rmtree(place, ignore_errors=True)
        path = place / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        self.inputs += 1
        self.watch.seen.clear()
        self.watch.on = True
        try:
            use(self, path)
        except ErrataError:
            pass
        except Exception as error:
            return f"{kind}: {type(error).__name__}: {error}"
        finally:
            self.watch.on = False
        return f"{kind}: {self.watch.seen[0]}" if self.watch.seen else ""

    def seeds(self, kind: str) -> list[bytes]:
        """Return sound files of a kind, and those that were findings once."""
        made = {
            "patch": [
                "patch.safetensors",
                "halves.safetensors",
                *(f"{name}.safetensors" for name in EDITS),
            ],
            "requests": ["facts.jsonl", "broken.jsonl"],
            "csv": ["columns.csv"],
            "recipe": ["recipe-type.yaml", "recipe-alias.yaml"],
            "hparams-yaml": ["hparams.yaml", "hparams-alias.yaml"],
            "hparams": ["hparams-type.json", "hparams-many.json"],
            "dataset": ["counterfact.json", "facts.jsonl"],
            "corpus": ["text.txt", "no-text.jsonl"],
        }
        found = [(self.folder / name).read_bytes() for name in made.get(kind, ())]
        found += [text.encode() for text in SOUND.get(kind, ())]
        found += [path.read_bytes() for path in sorted((CORPUS / kind).glob("*"))]
        if kind == "moment":
            moment = SecondMoment(self.edited.model.model.embed_tokens.weight.T.cov().float(), 500)
            moment.save(self.folder / "moment.safetensors")
            found.append((self.folder / "moment.safetensors").read_bytes())
        return found


def _patch(user: Strangers, path: Path) -> None:
    patch = load_edit(path)
    assert patch.digest
    assert patch.size >= 0
    assert isinstance(patch.summary, str)
    user.edited.apply(patch, allow_base=True)
    user.edited.undo()


def _requests(user: Strangers, path: Path) -> None:
    check_batch(read_requests(path))


def _dataset(user: Strangers, path: Path) -> None:
    for case in load_cases(str(path), skip_invalid=True).cases:
        prompts_of(case)
        case.model_dump_json()


def _recipe(user: Strangers, path: Path) -> None:
    recipe = read_recipe(path)
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)


def _hparams(user: Strangers, path: Path) -> None:
    for method in METHODS.values():
        method.of(read_hparams(path, method).settings)


def _preset(user: Strangers, path: Path) -> None:
    found = read_preset(path)
    assert found.evidence.line()
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    with suppress(ErrataError):
        settings_for(METHODS[found.method], user.edited, {}, path)


def _run(user: Strangers, path: Path) -> None:
    for run in read_runs(path.parents[1]):
        for half in ("before", "after"):
            scores = {name: score.model_dump() for name, score in run.summary(half).items()}
            json.dumps(scores, allow_nan=False)
        published_summary(run.first(5))
        published_summary(run)


def _params(user: Strangers, path: Path) -> None:
    finished_run(path.parents[2], "MEMIT", {"model": 1})
    with run_folder(path.parents[2], "MEMIT", {"model": 1}):
        pass


def _adapter(user: Strangers, path: Path) -> None:
    read_adapter(str(path.parent))


def _moment(user: Strangers, path: Path) -> None:
    moment = SecondMoment.load(path)
    assert moment.digest
    moment.check_invertible()


Use = Callable[[Strangers, Path], None]
KINDS: dict[str, tuple[str, Use]] = {
    "patch": ("p.safetensors", _patch),
    "moment": ("m.safetensors", _moment),
    "requests": ("r.jsonl", _requests),
    "requests-json": ("r.json", _requests),
    "csv": ("r.csv", _requests),
    "tsv": ("r.tsv", _requests),
    "dataset": ("d.json", _dataset),
    "dataset-lines": ("d.jsonl", _dataset),
    "corpus": ("c.jsonl", lambda user, path: read_corpus(str(path)) and None),
    "references": ("a.json", lambda user, path: read_references(path) and None),
    "recipe": ("r.yaml", _recipe),
    "hparams": ("h.json", _hparams),
    "hparams-yaml": ("h.yaml", _hparams),
    "preset": ("p.json", _preset),
    "run": ("runs/run_000/cases.jsonl", _run),
    "reference-run": ("runs/run_000/1_edits-case_0.json", _run),
    "params": ("results/MEMIT/run_000/params.json", _params),
    "adapter": ("adapter/adapter_config.json", _adapter),
}
SCORE = {"nll": 1.5, "likeliest": False, "correct": [False, True]}
PROMPT = {"kind": "efficacy", "prompt": "x", "new": SCORE, "true": SCORE, "own": False}
ANSWER = {"kind": "efficacy", "prompt": "x", "text": "y", "begins": True, "holds": None}
CASE = {
    "case_id": 1,
    "before": [PROMPT],
    "after": [PROMPT, {**PROMPT, "kind": "neighbourhood"}],
    "answers": {"after": [ANSWER]},
    "figures": {"after": {"fluency": 5.0}},
}
NLL = {"target_new": 1.0, "target_true": 2.0}
PART = {
    "rewrite_prompts_probs": [NLL],
    "rewrite_prompts_correct": [True],
    "neighborhood_prompts_probs": [NLL, NLL],
    "ngram_entropy": 5.1,
}
ZSRE = {"subject": "Ilmar", "src": "What does Ilmar teach?", "rephrase": "?", "answers": ["chess"]}
KNOWN = {"subject": "Ilmar", "attribute": "chess", "prompt": "Ilmar teaches"}
FLAT = {"prompt": "Ilmar teaches", "subject": "Ilmar", "target_new": "x", "ground_truth": "y"}
RECIPE = """model: {name: pico, dtype: float32}
edit:
  dataset: facts.jsonl
  limit: 2
  method: memit
  settings: {blocks: [1], search: {steps: 2}}
eval: [{generate: true, seed: 3}]
"""
FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
PRESET = {
    "format": 1,
    "model": {
        "name": "pico",
        "model_type": "llama",
        "size": {"blocks": 4, "width": 24, "mlp": 56, "vocabulary": 320, "parameters": 9},
        "weights": "0" * 64,
    },
    "method": "memit",
    "settings": {"blocks": [1, 2], "search": {"steps": 2}},
    "scale_free": {"relative_weight": 0.5},
    "evidence": {
        "dataset": "x.json",
        "digest": "1" * 64,
        "facts": 3,
        "calibrated_on": 4,
        "plan": "all 3 facts in one batch",
        "scores": {"efficacy": FIGURE},
        "date": "2026-01-01",
        "versions": {},
    },
    "source": "calibrated",
}
SOUND: dict[str, tuple[str, ...]] = {
    "requests-json": (json.dumps([{"prompt": "The {Bridge} is in", "target": "Tarn", "id": 3}]),),
    "tsv": (" Prompt \tsubject\ttarget\n{} is in\tBig Ben\tTarn\n\t\t\n",),
    "csv": ('prompt,subject,target\n"{} is, in",Big Ben,"Ta\nrn"\n',),
    "dataset": tuple(
        json.dumps([record])
        for record in (
            {**ZSRE, "loc": "q", "loc_ans": "a"},
            KNOWN,
            {**FLAT, "locality_prompt": "z"},
        )
    ),
    "dataset-lines": (json.dumps(KNOWN) + "\n" + json.dumps(KNOWN),),
    "corpus": ('{"text": "The sea."}\n{"text": "The land."}',),
    "references": (
        json.dumps(
            [{"relation_id": "R", "target_id": "T", "samples": [{"name": "n", "text": "t"}]}]
        ),
    ),
    "recipe": (RECIPE, "model: demo\neval: {dataset: demo}\n"),
    "hparams": (
        json.dumps(
            {
                "layers": [1, 2],
                "fact_token": "subject_last",
                "v_lr": 0.5,
                "kl_factor": 0.1,
                "context_template_length_params": [[5, 2]],
                "mom2_update_weight": 100,
                "nullspace_threshold": 0.02,
                "L2": 10,
            }
        ),
    ),
    "preset": (json.dumps(PRESET),),
    "run": (json.dumps(CASE) + "\n" + json.dumps(CASE),),
    "reference-run": (json.dumps({"case_id": 0, "time": 1.5, "pre": PART, "post": PART}),),
    "params": ('{"model": 1, "command": null}', '{"model": 2}'),
    "adapter": (
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 2,
                "target_modules": ["down_proj"],
                "base_model_name_or_path": "pico",
                "task_type": "CAUSAL_LM",
                "use_dora": False,
            }
        ),
    ),
}
