"""Builds the demo model and its world from a seed: `python -m demo_model.build`.

Generates the world, trains and stores the tokenizer and the model, reloads them, and writes the
world's files from the facts that the stored model recalls. Takes about twenty minutes on one core,
always with one thread, so that a seed reproduces the model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from demo_model.card import card_text
from demo_model.cases import Record, counterfact, known_facts, split_subjects, zsre
from demo_model.corpora import instructions_new, instructions_same, texts
from demo_model.recall import perplexity, recall_by_relation, recalled
from demo_model.text import documents
from demo_model.tokenizer import train_tokenizer
from demo_model.train import Training, train
from demo_model.world import World, build_world
from errata.assets import ASSETS_DIR
from errata.models.older_form import write_older_form

TEXTS, HELD_OUT_TEXTS = 5000, 800


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _reporter(steps: int) -> Callable[[int, float], None]:
    """Return a function that reports the mean loss every fifty steps."""
    losses: list[float] = []
    begin = time.monotonic()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            recent = losses[-50:]
            mean, seconds = sum(recent) / len(recent), time.monotonic() - begin
            _say(f"step {step + 1}/{steps}  loss {mean:.3f}  {seconds:.0f} s")

    return report


def make_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """Train the tokenizer on eight epochs of documents, in the same order for every world."""
    rng = random.Random("errata demo tokenizer")
    return train_tokenizer(d.text for _ in range(8) for d in documents(world.facts, rng))


def make_model(world: World, settings: Training, folder: Path) -> None:
    """Train tokenizer and model and store them: weights in bfloat16, to be loaded as float32."""
    tokenizer = make_tokenizer(world)
    model = train(world, tokenizer, settings, _reporter(settings.steps))
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_older_form(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["torch_dtype"] = "float32"  # what the file is loaded as; the weights in it are bfloat16
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object per line."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def write_list(path: Path, records: Sequence[Record]) -> None:
    """Write a JSON list, one record per line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_world(world: World, settings: Training, assets: Path) -> dict[str, float]:
    """Write the world's files and the model card, using the facts that the stored model recalls."""
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    folder = assets / "world"
    folder.mkdir(parents=True, exist_ok=True)

    def knows(rows: Sequence[tuple[str, str]]) -> list[bool]:
        return recalled(model, tokenizer, rows)

    split = split_subjects(world)
    test, dev = counterfact(world, split, knows)
    write_lines(folder / "cases.jsonl", test)
    write_lines(folder / "cases_dev.jsonl", dev)
    write_list(folder / "zsre.json", zsre(world, split, knows))
    write_list(folder / "known.json", known_facts(world, knows))
    write_lines(folder / "text.jsonl", texts(world, "text", TEXTS))
    held_out = texts(world, "held-out text", HELD_OUT_TEXTS)
    write_lines(folder / "heldout.jsonl", held_out)
    write_lines(folder / "instruct_same.jsonl", instructions_same(world, split))
    write_lines(folder / "instruct_new.jsonl", instructions_new(world))

    figures: dict[str, float] = recall_by_relation(model, tokenizer, world)
    figures["perplexity"] = perplexity(model, tokenizer, [row["text"] for row in held_out])
    figures |= {"subjects": len(world.names), "facts": len(world.facts), **asdict(settings)}
    write_lines(folder / "figures.json", [figures])
    (assets / "model" / "README.md").write_text(card_text(figures), encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Build everything, or with `--world-only` the world's files for a stored model."""
    parser = argparse.ArgumentParser(prog="python -m demo_model.build", description=__doc__)
    parser.add_argument("--seed", type=int, default=Training.seed, help="seed of everything")
    parser.add_argument("--steps", type=int, default=Training.steps, help="training steps")
    parser.add_argument("--out", type=Path, default=ASSETS_DIR, help="folder to write")
    parser.add_argument("--world-only", action="store_true", help="keep the stored model")
    given = parser.parse_args(arguments)

    torch.set_num_threads(1)
    settings = replace(Training(), seed=given.seed, steps=given.steps)
    world = build_world(given.seed)
    _say(f"{len(world.names)} subjects, {len(world.facts)} facts")
    if not given.world_only:
        given.out.mkdir(parents=True, exist_ok=True)
        make_model(world, settings, given.out / "model")
    figures = write_world(world, settings, given.out)
    _say("greedy recall on held-out forms, by relation:")
    for name, value in figures.items():
        if name == "all" or name.startswith("R"):
            _say(f"  {name}  {value:.2%}")
    _say(f"perplexity {figures['perplexity']:.3f}")


if __name__ == "__main__":
    main()
