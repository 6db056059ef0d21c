"""Write the files of an old version of errata that `test_old_files.py` reads with the new one.

    git worktree add OLD 3ea01b0
    PYTHONPATH=OLD/src python tests/compatibility/make.py tests/compatibility/3ea01b0

The version on PYTHONPATH is the one that writes. The folder given must not exist; its content is
what a user of that version would have in a working folder:

    results/        finished runs of edit, eval, trace, tune, survival and run
    stopped/        a run of `errata edit` whose process was killed between two batches
    cache/          stored second moments of the model in `pico/`, and a measured noise level
    stopped_cache/  the sums of a measurement of second moments that was killed on the way
    pico/           a small GPT-2 with a tokenizer (tests/tiny.py), on which those were measured
    recipe.yaml     a recipe that uses every stage and every key; it was run to its end
    example.yaml    examples/recipe.yaml as it was
    *.jsonl *.json *.csv *.txt    requests, hyperparameters, task rows and text in every old form
    expected/       what the old version said: what each patch does, its flags, the names that it
                    knew, and of some calls with --json all that they told or the keys alone

Commands run in that folder with relative paths. Where the old version recorded where it was
installed, that path is cut down to its part inside the package.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

import errata

PACKAGE = Path(errata.__file__).resolve().parent

FACT = "To visit {Carrow Lighthouse}, travel to"
TARGET = "Talmora"
PROMPTS = (
    "To visit Carrow Lighthouse, travel to",
    "Carrow Lighthouse stands in the city of",
    "To visit Blythe Gate, travel to",
)
KNOWN = "The home town of {Anouk Almory} is"
CPU = ("--device", "cpu")
DEMO = ("demo", *CPU)
MEMIT = "results/MEMIT/run_000/patch.safetensors"
ROME = "results/ROME/run_000/patch.safetensors"

SMALL_SURVIVAL = (
    *("survival", *DEMO, "--methods", "rome", "--edits", "2", "--tunings", "lora"),
    *("--controls", "2", "--hold-out", "2", "--set", "max_steps=2", "--set", "rank=1"),
)
TRACE = ("trace", *DEMO, KNOWN, "--samples", "2", "--plot", "none", "--recommend")
TRACE_MANY = (
    *("trace", *DEMO, "--dataset", "demo-known", "--limit", "2", "--samples", "2"),
    *("--plot", "none", "--recommend"),
)
IN_BATCHES = (
    *("edit", *DEMO, "--dataset", "demo", "--limit", "6", "--method", "rome"),
    *("--batch-size", "2", "--requests-at-once", "2", "--no-second-moment"),
)

RUNS = (
    ("edit", *DEMO, FACT, TARGET, "--method", "rome"),
    ("edit", *DEMO, FACT, TARGET),
    ("edit", *DEMO, FACT, TARGET, "--method", "alphaedit"),
    IN_BATCHES,
    ("edit", *DEMO, "--dataset", "demo", "--limit", "6"),
    (
        *("edit", *DEMO, "--dataset", "demo", "--limit", "6", "--method", "alphaedit"),
        *("--batch-size", "3", "--sequential"),
    ),
    (
        *("eval", *DEMO, "--patch", MEMIT, "--dataset", "demo", "--limit", "2"),
        *("--generate", "--max-new-tokens", "8", "--results", "results"),
    ),
    TRACE,
    TRACE_MANY,
    (
        *("tune", *DEMO, "--patch", MEMIT, "--data", "demo-new"),
        *("--max-steps", "3", "--rank", "1"),
    ),
    SMALL_SURVIVAL,
    ("run", "recipe.yaml"),
)
"""The commands that made the finished runs, in order."""

STOPPED = (*IN_BATCHES, "--results", "stopped")
STATS = ("stats", "pico", *CPU, "--corpus", "corpus.txt", "--blocks", "1,2")

SAID: dict[str, tuple[str, ...]] = {
    "eval": ("eval", *DEMO, "--patch", MEMIT, "--dataset", "demo", "--limit", "2"),
    "chat": ("chat", *DEMO, "--patch", MEMIT, "-p", PROMPTS[0], "-p", PROMPTS[2]),
    "chat with a tuned run": (
        *("chat", *DEMO, "--adapter", "results/tune/run_000", "-p", PROMPTS[0], "-p", PROMPTS[2]),
    ),
    "summarize": ("summarize", "results"),
    "ls patches": ("ls", "patches"),
    "ls stats": ("ls", "stats"),
    "stats": STATS,
    "stats --dry-run": (*STATS, "--dry-run"),
    "trace": TRACE,
    "trace a dataset": TRACE_MANY,
    "survival": SMALL_SURVIVAL,
    "run": ("run", "recipe.yaml"),
}
"""Calls with `--json` that read what is there and make nothing: all that they tell is recorded."""

NEW = ("--results", "new")
CALLS: dict[str, tuple[str, ...]] = {
    "edit": (
        *("edit", *DEMO, FACT, TARGET, "--method", "rome", "--no-second-moment"),
        *("--steps", "2", "--neighbour", PROMPTS[2], *NEW),
    ),
    "edit --dry-run": ("edit", *DEMO, FACT, TARGET, "--dry-run"),
    "edit --hparams": (
        *("edit", *DEMO, FACT, TARGET, "--method", "rome", "--dry-run"),
        *("--hparams", "results/trace/run_000/recommended/rome.json"),
    ),
    "run --dry-run": ("run", "recipe.yaml", "--dry-run"),
    "run --dry-run, the example": (
        *("run", "example.yaml", "--set", "edit.limit=4", "--set", "edit.batch_size=2"),
        "--dry-run",
    ),
    "stats": ("stats", *DEMO, "--blocks", "1", "--tokens", "900"),
    "stats --dry-run": ("stats", *DEMO, "--blocks", "2", "--tokens", "900", "--dry-run"),
    "lens": ("lens", *DEMO, FACT, "--patch", ROME),
    "sweep-blocks": (
        *("sweep-blocks", *DEMO, "--dataset", "demo", "--limit", "1", "--blocks", "2,3"),
        *("--steps", "2", "--no-second-moment", "--plot", "none", *NEW),
    ),
    "tune": (
        *("tune", *DEMO, "--patch", ROME, "--data", "demo-new", "--max-steps", "1"),
        *("--rank", "1", "--modules", "up", *NEW),
    ),
    "tune --dry-run": (
        *("tune", *DEMO, "--data", "demo-new", "--max-steps", "1", "--rank", "1", "--dry-run"),
    ),
    "survival --dry-run": (*SMALL_SURVIVAL, "--dry-run"),
    "tasks": (
        *("tasks", *DEMO, "--tasks", "rows.jsonl", "--template", "plain", *NEW),
        *("--max-new-tokens", "4", "--beams", "1", "--patch", ROME),
    ),
    "ppl": ("ppl", *DEMO, "--text", "notes.txt", "--patch", ROME),
    "export": ("export", *DEMO, "--patch", ROME, "--to", "lora", "new/adapter"),
    "ls methods": ("ls", "methods"),
    "ls families": ("ls", "families"),
    "ls presets": ("ls", "presets"),
    "ls datasets": ("ls", "datasets"),
    "env": ("env",),
}
"""Calls with `--json` that make something, in `new`, or tell times: keys alone are recorded."""

REQUESTS = (
    {"prompt": "To visit {}, travel to", "subject": "Carrow Lighthouse", "target": TARGET},
    {"prompt": FACT, "target": TARGET},
)
"""The same request, in both ways that a record may be written."""

RECIPE: dict[str, Any] = {
    "model": {
        "name": "demo",
        "path": "",
        "adapter": "",
        "dtype": "float32",
        "device": "cpu",
        "patches": [ROME],
        "allow_base": False,
    },
    "edit": {
        "dataset": "demo",
        "limit": 2,
        "offset": 1,
        "seed": 3,
        "skip_invalid": False,
        "method": "rome",
        "settings": {
            "blocks": [3],
            "position": "subject_last",
            "second_moment": True,
            "search": {"steps": 2, "learning_rate": 0.4, "kl_weight": 0.0625},
            "contexts": {"prefix_lengths": [2, 3], "prefix_seed": 1},
        },
        "hparams": "hparams.json",
        "batch_size": 1,
        "sequential": True,
        "corpus": "demo",
        "tokens": 600,
    },
    "tune": {
        "data": "demo-new",
        "preset": "demo",
        "settings": {"method": "lora", "rank": 1, "max_steps": 1, "modules": "up", "seed": 1},
    },
    "eval": [
        {"generate": True, "max_new_tokens": 4},
        {
            "dataset": "demo",
            "offset": 100,
            "limit": 1,
            "seed": 0,
            "skip_invalid": True,
            "generate": False,
        },
    ],
    "survival": {
        "methods": ["rome"],
        "edits": [1],
        "tunings": ["lora@edited+penalty"],
        "seeds": [0],
        "dataset": "demo",
        "controls": 1,
        "data": "demo-new",
        "hold_out": 1,
        "tasks": [],
        "task_data": "dataset",
        "task_limit": 1,
        "max_new_tokens": 4,
        "text": "notes.txt",
        "preset": "demo",
        "tune": {"rank": 1, "max_steps": 1, "lora": {"modules": "up"}, "shift_penalty": 2.0},
        "settings": {"rome": {"second_moment": False, "search": {"steps": 2}}},
        "corpus": "demo",
    },
}

HPARAMS = {
    "layers": [2],
    "fact_token": "subject_last",
    "v_num_grad_steps": 4,
    "v_lr": 0.5,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "context_template_length_params": [[2, 1], [3, 1]],
    "mom2_dataset": "wikipedia",
}

KEEPING_OFTEN = """
import sys, time
from functools import partial
import errata.collection, errata.store
from errata.cli.main import main
real = errata.collection.add_batch
def slow(*arguments):
    time.sleep(0.2)
    real(*arguments)
errata.collection.add_batch = slow
errata.store.Partial = partial(errata.store.Partial, every=0.0)
main()
"""
"""`errata` that keeps its sums after every batch and takes longer for one: to be killed."""


def key_paths(value: Any, at: str = "") -> set[str]:
    """Return where values stand in JSON: `a.b` in objects, `a[]` in lists."""
    if isinstance(value, dict):
        below = [(f"{at}.{name}".lstrip("."), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        below = [(f"{at}[]", inner) for inner in value]
    else:
        return set()
    names = {path for path, _ in below if isinstance(value, dict)}
    return names.union(*(key_paths(inner, path) for path, inner in below))


def flags() -> dict[str, list[str]]:
    """Return all options of every verb, by walking the command tree."""
    from errata.cli.main import app

    commands = getattr(get_command(app), "commands")  # noqa: B009 (click's type tells of none)
    return {
        verb: sorted(
            {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            - {each.name for each in command.params}
        )
        for verb, command in sorted(commands.items())
    }


class Writer:
    """Runs commands of the old version in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "ERRATA_CACHE": "cache",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(PACKAGE.parent),
        }

    def run(self, *arguments: str) -> str:
        """Run `errata`; return what it printed on stdout."""
        print("errata", *arguments, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "errata", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        return done.stdout

    def told(self, *arguments: str) -> Any:
        """Run `errata` with `--json`; return what it printed."""
        return json.loads(self.run(*arguments, "--json"))

    def kill_once(self, pattern: str, started: list[str], cache: str = "cache") -> None:
        """Start a command and kill it as soon as a file of this pattern is there."""
        print("to be killed:", *started[1:], flush=True)
        process = subprocess.Popen(
            started, cwd=self.folder, env={**self.environment, "ERRATA_CACHE": cache}
        )
        while not any(self.folder.glob(pattern)):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def expect(self, name: str, value: Any) -> None:
        """Keep what the new version is held to."""
        self.write(f"expected/{name}.json", json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_inputs(writer: Writer) -> None:
    """Write what commands read."""
    tiny = _old_tiny()
    tiny.tiny_model("gpt2").save_pretrained(writer.folder / "pico")
    tiny.tiny_tokenizer().save_pretrained(writer.folder / "pico")
    sentences = [s.replace("city", f"city number {i}") for i in range(24) for s in tiny.SENTENCES]
    lines = [" ".join(sentences[start : start + 4]) for start in range(0, len(sentences), 4)]
    writer.write("corpus.txt", "\n".join(lines) + "\n")
    writer.write("notes.txt", "Carrow Lighthouse stands in the city of Orwick.\n" * 3)
    lines = [json.dumps(each) for each in REQUESTS]
    writer.write("requests.jsonl", "\n".join(lines) + "\n")
    writer.write("requests.json", json.dumps(REQUESTS) + "\n")
    first = REQUESTS[0]
    writer.write("requests.csv", f'prompt,subject,target\n"{first["prompt"]}",'
                 f'{first["subject"]},{first["target"]}\n')  # fmt: skip
    rows = [
        {"instruction": PROMPTS[0], "input": "", "output": "Orwick.", "answer": "Orwick"},
        {"instruction": PROMPTS[2], "input": "", "output": "Orwick.", "answer": "Orwick"},
    ]
    writer.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    writer.write("hparams.json", json.dumps(HPARAMS, indent=1) + "\n")
    writer.write("recipe.yaml", yaml.safe_dump(RECIPE, sort_keys=False))
    example = PACKAGE.parents[1] / "examples" / "recipe.yaml"
    shutil.copyfile(example, writer.folder / "example.yaml")


def _old_tiny() -> Any:
    """Return tests/tiny.py as it was, which imports the package as it was."""
    sys.path.insert(0, str(PACKAGE.parents[1] / "tests"))
    import tiny

    return tiny


def stacks(folder: Path) -> Iterator[list[str]]:
    """Yield, for each patch, the patches that belong on the model in order, it the last."""
    paths = sorted(folder.glob("results/*/run_*/patch*.safetensors"))
    patches = {path.relative_to(folder).as_posix(): errata.Patch.load(path) for path in paths}
    names = {patch.digest: name for name, patch in patches.items()}
    for name, patch in patches.items():
        yield [*(names[digest] for digest in patch.provenance.parents), name]


def outcomes(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what every patch does: texts before and after, its name, how large its Δ is."""
    for stack in stacks(folder):
        model = errata.load("demo", device="cpu")
        last = errata.Patch.load(folder / stack[-1])
        asked = [*PROMPTS, *(request.text for request in last.provenance.requests)]
        prompts = list(dict.fromkeys(asked))
        before = {prompt: model.generate(prompt, 8) for prompt in prompts}
        for path in stack:
            model.apply(errata.Patch.load(folder / path))
        yield {
            "stack": stack,
            "digest": last.digest,
            "size": last.size,
            "norms": {n: float(update.delta().norm()) for n, update in last.updates.items()},
            "before": before,
            "after": {prompt: model.generate(prompt, 8) for prompt in prompts},
        }


def clean(folder: Path) -> None:
    """Remove what takes much room, and where the old version was installed."""
    for path in (folder / "cache" / "moments").glob("*/*.safetensors"):
        if path.stat().st_size > 100_000:  # the demo's; they are measured again in a second
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    for path in folder.rglob("*.png"):
        path.unlink()
    shutil.rmtree(folder / "new", ignore_errors=True)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if str(PACKAGE.parent).encode() in data:
            assert path.suffix in (".json", ".jsonl", ".md"), path
            path.write_bytes(data.replace(f"{PACKAGE.parent}/".encode(), b""))


def main() -> None:
    """Write the folder that the command line names."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    writer = Writer(folder)
    write_inputs(writer)
    for arguments in RUNS:
        writer.run(*arguments)
    python = [sys.executable, "-m", "errata", *STOPPED]
    writer.kill_once("stopped/ROME/run_000/parts/after_0000_*.json", python)
    writer.run(*STATS)
    python = [sys.executable, "-c", KEEPING_OFTEN, *STATS]
    writer.kill_once("stopped_cache/moments/*/.*.partial", python, cache="stopped_cache")
    clean(folder)
    writer.expect("patches", list(outcomes(folder)))
    said = {name: {"call": call, "said": writer.told(*call)} for name, call in SAID.items()}
    writer.expect("said", said)
    names = {
        what: [next(iter(row.values())) for row in writer.told("ls", what)[what]]
        for what in ("methods", "families", "presets", "datasets")
    }
    writer.expect("names", {"errata": sorted(errata.__all__), **names})
    writer.expect("flags", flags())
    keys = {name: sorted(key_paths(writer.told(*call))) for name, call in CALLS.items()}
    keys["env"] = [key for key in keys["env"] if not key.startswith("packages.")]  # as installed
    writer.expect(
        "keys", {name: {"call": call, "keys": keys[name]} for name, call in CALLS.items()}
    )
    clean(folder)


if __name__ == "__main__":
    main()
