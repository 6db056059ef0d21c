"""`errata export`, and `--adapter` on the verbs that load a model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError, command_hints
from errata.experiments.tuning_run import run_tuning
from errata.patches.edited_model import load
from errata.patches.export import export_merged
from errata.patches.weight_patch import WeightPatch
from laws.bench import random_patch
from patches.folders import far, logits, saved_adapter, saved_base, with_adapter
from tiny import FACTS, SENTENCES
from tuning.pico import ROWS, pico_on_disk, pico_patch, quick


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_base("gpt2", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def patches(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    edited, folder = load(str(base)), tmp_path_factory.mktemp("patches")
    return [
        random_patch(edited, rank, rank=rank).save(folder / f"p{rank}.safetensors")
        for rank in (2, 3)
    ]


def errata(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def asked(*arguments: object) -> dict[str, Any]:
    """Run a command that prints one JSON object and nothing else."""
    result = errata(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    [line] = result.stdout.splitlines()
    return dict(json.loads(line))


def test_two_patches_become_one_lora(base: Path, patches: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "lora"
    options = [option for patch in patches for option in ("--patch", patch)]
    said = asked("export", base, *options, "--to", "lora", out)
    edited = load(str(base), patches=patches)
    assert far(logits(with_adapter("gpt2", out)), logits(edited.model)) < 1e-5
    assert said == {
        "model": str(base),
        "target": "lora",
        "path": str(out),
        "patches": [str(patch) for patch in patches],
        "patches_below": 0,
        "rank": 5,
        "max_lora_rank": 8,
        "weights": [f"transformer.h.{block}.mlp.c_proj.weight" for block in (1, 2)],
        "ranks": {f"transformer.h.{block}.mlp.c_proj.weight": 5 for block in (1, 2)},
        "loss": {f"transformer.h.{block}.mlp.c_proj.weight": 0.0 for block in (1, 2)},
        "notes": [],
    }


def test_a_cut_lora_says_its_loss_and_what_to_do_next(
    base: Path, patches: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "lora"
    result = errata("export", base, "--patch", patches[1], "--to", "lora", out, "--rank", 1)
    assert result.exit_code == 0, result.exception
    assert "the relative error of Δ at this rank is up to" in result.stderr
    assert "transformer.h.1.mlp.c_proj.weight" in result.stdout
    assert f"saved {out}" in result.stdout
    assert f"--adapter {out}" in result.stdout
    assert "rank 1: vLLM needs --max-lora-rank 1" in result.stdout


def test_a_merged_checkpoint_is_a_model_of_its_own(
    base: Path, patches: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    said = asked("export", base, "--patch", patches[0], "--to", "merged", out)
    assert (said["target"], said["rank"], said["ranks"]) == ("merged", None, {})
    prompt = ("-p", "The harbour of")
    there = asked("chat", out, *prompt)["answers"]
    here = asked("chat", base, "--patch", patches[0], *prompt)["answers"]
    assert there[0]["answer"] == here[0]["after"]


def test_an_exported_lora_is_an_adapter_to_chat_and_export(
    base: Path, patches: list[Path], tmp_path: Path
) -> None:
    errata("export", base, "--patch", patches[0], "--to", "lora", tmp_path / "lora")
    adapter = ("--adapter", tmp_path / "lora", "--adapter-kind", "lora")
    prompt = ("-p", "The harbour of")
    there = asked("chat", base, *adapter, *prompt)["answers"]
    here = asked("chat", base, "--patch", patches[0], *prompt)["answers"]
    assert there[0]["answer"] == here[0]["after"]
    assert asked("chat", base, "--adapter", " ", *prompt)["answers"][0]["answer"]
    said = asked("export", base, *adapter, "--to", "merged", tmp_path / "merged")
    assert said["loss"] == {}
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert f"adapter: {tmp_path / 'lora'}" in card
    edited = load(str(base), adapter=tmp_path / "lora")
    on_top = random_patch(edited, 4).save(tmp_path / "top.safetensors")
    said = asked("export", base, *adapter, "--patch", on_top, "--to", "lora", tmp_path / "second")
    assert any("with the adapter" in note for note in said["notes"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_tuned_on_edits_carries_them_and_says_what_can_be_exported(
    method: str, tmp_path: Path
) -> None:
    edited = pico_on_disk(tmp_path / "model")
    patch = pico_patch(edited)
    own = patch.save(tmp_path / "own.safetensors")
    edited.apply(patch)
    _, run = run_tuning(edited, ROWS, quick(method=method), tmp_path)
    base, top = tmp_path / "model", ("--adapter", run)
    said = asked("export", base, *top, "--to", "merged", tmp_path / "merged")
    assert said["patches_below"] == 1
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["requests"] == 2
    [entry] = recipe["patches"]
    assert (entry["digest"], entry["below_adapter"]) == (patch.digest, True)
    assert WeightPatch.load(tmp_path / "merged" / entry["file"]) == patch
    assert "2 facts edited" in card
    told = errata("export", base, *top, "--to", "merged", tmp_path / "again").stdout
    assert "model, 1 patch\n* 1 of them were applied before" in told
    for given in ((), ("--patch", own)):
        problem = errata("export", base, *top, *given, "--to", "lora", tmp_path / "lora").exception
        assert isinstance(problem, ErrataError)
        assert "no patch on top of" in problem.message
        made = run / ("checkpoint" if method == "full" else "adapter")
        assert any(f"copy {made}" in hint for hint in problem.hints)
        assert any("--to merged DIR" in hint for hint in command_hints(problem))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--to lora OUT --adapter OUT", "cannot load the adapter"),
        ("--to gguf OUT --patch PATCH", "cannot export to 'gguf'"),
        ("--to lora OUT", "there is no patch to export"),
        ("--to merged OUT", "there is no patch to export"),
        ("--to merged OUT --adapter ' '", "there is no patch to export"),
        ("--to merged OUT --patch PATCH --rank 2", "only a LoRA has a rank"),
        ("--to lora FULL --patch PATCH", "is not empty"),
        ("--to lora OUT --patch PATCH --adapter OUT", "cannot load the adapter"),
        ("--to lora OUT --patch PATCH --adapter-kind dora", "but no adapter"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: str, message: str, base: Path, patches: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    places = {"OUT": tmp_path / "out", "FULL": tmp_path / "full", "PATCH": patches[0]}
    words = [places.get(word, word) for word in shlex.split(arguments)]
    result = errata("export", base, *words)
    assert isinstance(result.exception, ErrataError), result.output
    assert message in result.exception.message
    assert result.exception.hints
    assert not (tmp_path / "out").exists()


def test_every_verb_that_loads_a_model_takes_an_adapter() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    flags = {
        name: {option for p in verb.params for option in p.opts}
        for name, verb in verbs.items()
        if any(p.name == "model" for p in verb.params)
    }
    assert {"trace", "lens", "sweep-blocks", "stats", "survival"} <= flags.keys()
    assert [name for name, has in flags.items() if not {"--adapter", "--adapter-kind"} <= has] == []


@pytest.mark.parametrize(
    "words",
    [
        'lens BASE "The {Lantern Bridge} is in"',
        'trace BASE "The {Lantern Bridge} is in" --level 0.1 --samples 2 --plot none --results OUT',
        "sweep-blocks BASE --dataset CASES --blocks 1 --steps 2 --max-steps 2 "
        "--no-second-moment --method rome --prefix-lengths 2 --plot none --results OUT",
        "stats BASE --corpus TEXT --blocks 1",
    ],
    ids=lambda words: words.split()[0],
)
def test_what_an_adapter_makes_of_a_model_is_read_and_not_mixed_with_it(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved_base("llama", tmp_path / "base")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    cases = [{**fact.model_dump(exclude_defaults=True), "target_true": "Hesk"} for fact in FACTS]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    adapter = saved_adapter("llama", tmp_path / "adapter")
    export_merged(load(str(base), adapter=adapter), tmp_path / "merged", adapter=str(adapter))

    def said(model: Path, *options: object) -> dict[str, Any]:
        places = {"BASE": model, "OUT": tmp_path / "results", "CASES": tmp_path / "cases.jsonl"}
        places["TEXT"] = tmp_path / "text.txt"
        given = [places.get(word, word) for word in shlex.split(words)]
        found = asked(*given, *options)
        return {k: v for k, v in found.items() if k not in ("model", "run")}

    plain = said(base)
    for summary in (tmp_path / "results").rglob("summary.json"):
        summary.unlink()  # as if it had been stopped
    adapted = said(base, "--adapter", adapter, "--adapter-kind", "lora")
    assert adapted == said(tmp_path / "merged")
    if words.startswith("stats"):
        assert len(list((tmp_path / "cache" / "moments").rglob("*.safetensors"))) > 1
    else:
        assert plain != adapted


@pytest.mark.parametrize("words", [(), ("--to",), ("--to", "lora")])
def test_a_target_without_a_folder_is_a_wrong_command_line(words: tuple[str, ...]) -> None:
    assert errata("export", "demo", *words).exit_code == 2
