"""Every kind of bad input, tried end to end, and the words that it is met with.

What is printed stands in `messages.txt`, to be read as a user reads it. After a change that is
meant, `pytest tests/errors --update-messages` writes it anew. Words that come from a library
and lists that grow stand there as `…`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Said

FILE = Path(__file__).parent / "messages.txt"
INTRO = "What `errata` says to each bad input; see test_messages.py for how this file is kept.\n"

QUICK = "--blocks 1 --steps 2 --prefix-lengths 2"
TEXT = f"--corpus text.txt {QUICK}"
FACT = '"The {Lantern Bridge} is in" Quenby'

COMMANDS: dict[str, str] = {
    # the request
    "missing subject": 'edit pico "The Lantern Bridge is in" Quenby',
    "a slot and no subject": 'edit pico "The {} is in" Quenby',
    "a subject that is not there": 'edit pico "The bridge is in" Quenby --subject "Big Ben"',
    "empty subject": 'edit pico "The { } is in" Quenby',
    "empty target": 'edit pico "The {Lantern Bridge} is in" ""',
    "no target": 'edit pico "The {Lantern Bridge} is in"',
    "nothing to edit": "edit pico",
    "two sources": f"edit pico {FACT} --dataset facts.jsonl",
    "one fact, cut like a dataset": f"edit pico {FACT} --limit 3 --offset 1 --seed 7",
    "one fact, its broken records left out": f"edit pico {FACT} --skip-invalid",
    "a subject beside a dataset": "edit pico --dataset facts.jsonl --subject 'Big Ben'",
    "requests, cut like a dataset": "edit pico --requests facts.jsonl --limit 3",
    "conflicting requests": f"edit pico --requests conflict.jsonl {TEXT}",
    "a request longer than the model reads": f"edit pico --requests long.jsonl {TEXT}",
    "a character that is none": f"edit pico --requests half-character.jsonl {TEXT}",
    # the model
    "model without a row": f"edit stranger {FACT}",
    "a mixture of experts": f"edit experts {FACT}",
    "a mixture of experts, measured": "stats experts --corpus text.txt",
    "model that is nowhere, offline": f"edit nowhere/model {FACT}",
    "model in no folder": f"edit ./nowhere {FACT}",
    "model whose name is misspelt": f"edit picoo {FACT}",
    "model in a folder that is misspelt": f"edit runs/MEMIT/run_00 {FACT}",
    "no model": 'chat "" -p x',
    "a folder without a model": "chat runs -p x",
    "a folder without weights": "chat no-weights -p x",
    "weights that were cut short": "chat cut-weights -p x",
    "weights that lack a tensor": "chat lacking -p x",
    "a file as a model": "chat text.txt -p x",
    "a file of weights": "chat pico/model.safetensors -p x",
    "a GGUF file that is nowhere": "chat nowhere.gguf -p x",
    "quantised weights": "chat gptq -p x",
    "a model with its own code": "chat own-code -p x",
    "weights for another library": "chat onnx -p x",
    "a folder of GGUF files": "chat ggufs -p x",
    "weights for a larger vocabulary": "chat resized -p x",
    "weights of a shard that is missing": "chat lacking-shard -p x",
    "no tokenizer": "chat no-tokenizer -p x",
    "NaN weights": f"edit nan {FACT} {TEXT}",
    "infinite weights": "eval infinite --dataset facts.jsonl",
    "NaN weights, measured": "stats nan --corpus text.txt",
    "no such dtype": "chat pico -p x --dtype int4",
    "no such device": "chat pico -p x --device gpu",
    "no GPU": "chat pico -p x --device cuda:7",
    "a device without memory": "chat pico -p x --device meta",
    "no such adapter": "chat pico -p x --adapter nowhere",
    "adapter of no known kind": "chat pico -p x --adapter nowhere --adapter-kind ia3",
    # settings
    "unknown method": f"edit pico {FACT} --method mend",
    "unknown setting": f"edit pico {FACT} --method rome --history",
    "unknown flag": f"edit pico {FACT} --colour red",
    "unknown verb": "mend pico",
    "no moment for blocks that are a guess": f"edit pico {FACT}",
    "block out of range": f"edit pico {FACT} --corpus text.txt --blocks 3,4",
    "no blocks": f"edit pico {FACT} --corpus text.txt --blocks x",
    "several blocks for ROME": f"edit pico {FACT} --method rome --blocks 1,2",
    "the same block twice": f"edit pico {FACT} --corpus text.txt --blocks 1,1",
    "blocks of stats": "stats pico --corpus text.txt --blocks a,b",
    "loss beyond the model": f"edit pico {FACT} {TEXT} --loss-block 9",
    "a word for a number": f"edit pico {FACT} --steps many",
    "an infinite number": f"edit pico {FACT} --learning-rate inf --clamp nan",
    "a prefix of no length": f"edit pico {FACT} --prefix-lengths 3,-1",
    "a seed too large": f"edit pico {FACT} --prefix-seed 99999999999999999999",
    "no cases wanted": "edit pico --dataset facts.jsonl --limit 0",
    "no tokens wanted": "stats pico --corpus text.txt --tokens 0",
    "no answer wanted": "chat pico -p x --max-new-tokens 0",
    "more cases than there are": "eval pico --dataset facts.jsonl --offset 100",
    "prefixes in no file": f"edit pico {FACT} --prefixes nowhere.txt",
    "unknown hyperparameters": f"edit pico {FACT} --hparams hparams-unknown.json",
    "hyperparameter of a wrong type": f"edit pico {FACT} --hparams hparams-type.json",
    "hyperparameters without end": f"edit pico {FACT} --hparams hparams-many.json",
    "hyperparameters in YAML with an alias": f"edit pico {FACT} --hparams hparams-alias.yaml",
    "hyperparameters of another method": f"edit pico {FACT} --hparams hparams-ft.yaml",
    "hyperparameters made for another method": (
        f"edit pico {FACT} --method rome --hparams hparams.yaml"
    ),
    "hyperparameters in a list": f"edit pico {FACT} --hparams hparams-list.json",
    # second moments
    "no second moment": f"edit pico {FACT} {QUICK}",
    "singular second moment": f"edit pico {FACT} --corpus short.txt {QUICK} --method rome",
    "singular second moment, MEMIT": f"edit pico {FACT} --corpus short.txt {QUICK}",
    "too few tokens for a null space": f"edit pico {FACT} {TEXT} --tokens 60 --method alphaedit",
    "no null space": f"edit pico {FACT} {TEXT} --method alphaedit --null-space-threshold 1e-9",
    "no corpus": "stats pico",
    "no such corpus": "stats pico --corpus nowhere.txt",
    "a corpus without text": "stats pico --corpus blank.txt",
    "a corpus of other records": "stats pico --corpus no-text.jsonl",
    "a Hub corpus, offline": "stats pico --corpus hf:nowhere",
    # files of requests and cases
    "no such file": "edit pico --requests nowhere.jsonl",
    "folder instead of a file": "edit pico --requests folder.jsonl",
    "empty file": "edit pico --requests empty.jsonl",
    "half-written file": "edit pico --requests cut.json",
    "half-written line": "edit pico --requests cut.jsonl",
    "not UTF-8": "edit pico --requests latin.jsonl",
    "UTF-16": "edit pico --requests utf16.jsonl",
    "deep JSON": "edit pico --requests deep.json",
    "a deep line": "edit pico --requests deep.jsonl",
    "a number without end": "edit pico --requests bigint.jsonl",
    "no format": "edit pico --requests no-extension",
    "records of wrong types": "edit pico --requests types.jsonl",
    "a quotation mark left open": "edit pico --requests open-quote.csv",
    "other columns": "edit pico --requests columns.csv",
    "nothing but broken requests": "edit pico --requests types.jsonl --skip-invalid",
    "references and nothing written": "eval pico --dataset one.jsonl --references published",
    "a length of answers and none written": "eval pico --dataset one.jsonl --max-new-tokens 32",
    "no such dataset": "eval pico --dataset nowhere",
    "no dataset": "eval pico",
    "folder instead of a dataset": "eval pico --dataset folder.jsonl",
    "dataset with a broken record": "eval pico --dataset counterfact.json",
    "requests with broken records": "edit pico --dataset broken.jsonl",
    "empty dataset": "eval pico --dataset empty.jsonl",
    "half-written dataset": "eval pico --dataset cut.json",
    "a deep dataset": "eval pico --dataset deep.json",
    "a number as a dataset": "eval pico --dataset number.json",
    "a prompt longer than the model reads": "eval pico --dataset long.jsonl",
    # patches
    "no such patch": "chat pico -p x --patch nowhere.safetensors",
    "folder instead of a patch": "chat pico -p x --patch runs",
    "half-written patch": "chat pico -p x --patch cut.safetensors",
    "not a patch": "chat pico -p x --patch not-a-patch.safetensors",
    "a header without end": "chat pico -p x --patch huge-header.safetensors",
    "tensors without a recipe": "chat pico -p x --patch plain.safetensors",
    "patch for another model": "chat other -p x --patch patch.safetensors",
    "patch for another model, allowed": "chat other -p x --patch patch.safetensors --allow-base",
    "patch with a renamed weight": "chat pico -p x --patch renamed.safetensors",
    "patch for a weight the model lacks": "chat pico -p x --patch nowhere-weight.safetensors",
    "patch of a wrong dtype": "chat pico -p x --patch halves.safetensors",
    "patch with NaN": "chat pico -p x --patch nan.safetensors",
    "patch with a wrong header": "chat pico -p x --patch header.safetensors",
    "patch of a later errata": "chat pico -p x --patch newer.safetensors",
    # recipes
    "no such recipe": "run nowhere.yaml",
    "wrong type in a recipe": "run recipe-type.yaml",
    "unknown key in a recipe": "run recipe-unknown.yaml",
    "a tag in a recipe": "run recipe-tag.yaml",
    "an alias in a recipe": "run recipe-alias.yaml",
    "a list as a recipe": "run recipe-list.yaml",
    "a deep recipe": "run recipe-deep.yaml",
    "a folder as a recipe": "run runs",
    # results and other verbs
    "results in a file": f"edit pico {FACT} {TEXT} --results text.txt",
    "results where nothing can be written": f"edit pico {FACT} {TEXT} --results /proc/errata",
    "evaluation in a file": "eval pico --dataset one.jsonl --results text.txt",
    "no such list": "ls patch",
    "no such runs": "summarize nowhere",
    "a folder without runs": "summarize pico",
    "export of nothing": "export pico --to lora new",
    "export to what": "export pico --to onnx new",
    "export to a folder that is full": "export pico --to lora runs --patch patch.safetensors",
    "export into a file": "export pico --to merged text.txt --patch patch.safetensors",
}
WARNED: dict[str, str] = {
    "target equal to the current answer": f"edit pico --requests said.jsonl {TEXT}",
    "targets equal to the current answers": f"edit pico --requests some-said.jsonl {TEXT}",
    "half-written run": "summarize runs",
    "broken records left out": "eval pico --dataset broken.jsonl --skip-invalid",
    "broken requests left out": f"edit pico --requests broken.jsonl --skip-invalid {TEXT}",
    "damaged patches in a list": "ls patches --results damaged",
}
ELSEWHERE = (  # the words of libraries, and lists that grow
    r"(?<=hint: supported types: ).*",
    r"(?<=hint: known methods: ).*",
    r"(?<=hint: known datasets: ).*",
    r"(?<=cannot be moved to 'gpu': ).*",
    r"(?<=cannot be moved to 'cuda:7': ).*",
    r"(?<=and from the Hub: ).*",
    r"(?<=that can be loaded: )(?!it has).*",
    r"(?<=cannot load the dataset nowhere: ).*",
    r"(?<=is not a patch: )(?!it is).*",
)
FIRST = re.compile(r"^(error|warning|Usage):? .*", re.MULTILINE)


def shown(name: str, command: str, said: Said, tmp_path: Path) -> str:
    """What is kept of one command: how it ended and what it said on stderr."""
    text = said.err.replace(str(tmp_path), "TMP").rstrip()
    for words in ELSEWHERE:
        text = re.sub(words, "…", text)
    return f"## {name}\n\n$ errata {command}\n{text}\n[exit {said.code}]\n"


def kept() -> dict[str, str]:
    parts = re.split(r"^(?=## )", FILE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {part[3 : part.index("\n")]: part.rstrip("\n") + "\n" for part in parts}


@pytest.fixture(scope="module")
def updated(request: pytest.FixtureRequest) -> Any:
    """What is said now, written down at the end if that was asked for."""
    found: dict[str, str] = {}
    yield found
    if request.config.getoption("--update-messages"):
        held = {**(kept() if FILE.exists() else {}), **found}
        order = [name for name in (*COMMANDS, *WARNED) if name in held]
        FILE.write_text("\n".join([INTRO, *(held[name] for name in order)]), encoding="utf-8")


@pytest.mark.parametrize("name", [*COMMANDS, *WARNED])
def test_bad_input_is_met_with_these_words(
    name: str,
    shell: Any,
    tmp_path: Path,
    updated: dict[str, str],
    request: pytest.FixtureRequest,
) -> None:
    command = {**COMMANDS, **WARNED}[name]
    results = "--results" not in command and command.split()[0] in ("edit", "run")
    said = shell(
        *shlex.split(command), *(("--results", str(tmp_path / "results")) if results else ())
    )
    assert "Traceback" not in said.err
    assert said.code == 0 if name in WARNED else said.code in (1, 2)
    if name in COMMANDS:
        assert said.out == ""
    first = FIRST.search(said.err)
    assert first, said
    if said.code == 1:
        assert first[0].startswith("error: ")
        assert "\nhint: " in said.err, "it is not said what to do"
    text = shown(name, command, said, tmp_path)
    updated[name] = text
    if not request.config.getoption("--update-messages"):
        assert text == kept()[name]


def test_the_file_holds_no_more_than_is_tried() -> None:
    assert list(kept()) == [*COMMANDS, *WARNED]
