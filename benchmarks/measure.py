"""What every benchmark stands on: CPU seconds of alternating runs, model shapes, text, JSON.

A benchmark times the plain procedure and ours in turns, in one process on one thread, and reports
the ratio of the medians: noise of a busy machine then falls on both. Only CPU seconds are
counted. Models have random weights from a fixed seed; text is real where ERRATA_DATA names a
folder of samples, and made up, of like length, where it does not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from errata.data.request import EditRequest
from errata.methods.closed_form.rewrite import Rewrite, rewrite_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import plain

__all__ = ["plain"]

Work = Callable[[], Any]


class Timing(NamedTuple):
    """One case: CPU seconds of the plain procedure and of ours, and how far apart they are."""

    plain_seconds: float
    seconds: float
    difference: float
    """Largest relative difference of the results (nats for evaluation)."""
    flops: float = 0.0
    """Multiplications and additions of ours, for `gflops`."""
    sampled: str | None = None
    """What was timed and scaled linearly, where not all of it was."""
    more: Mapping[str, Any] = {}
    """Further figures of this case."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures that every benchmark prints."""
        found: dict[str, Any] = {
            "ratio": self.plain_seconds / self.seconds,
            "difference": self.difference,
            "seconds": self.seconds,
            "plain_seconds": self.plain_seconds,
            "gflops": self.flops / self.seconds / 1e9,
        }
        if self.sampled is not None:
            found["sampled"] = self.sampled
        return found | dict(self.more)


def cpu_seconds(work: Work) -> tuple[float, Any]:
    """Return the CPU seconds that `work` took, and what it returned."""
    gc.collect()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def medians(*works: Work, rounds: int = 3) -> list[tuple[float, Any]]:
    """Run works in turns, `rounds` times each; per work, the median CPU seconds and last result."""
    taken: list[list[float]] = [[] for _ in works]
    results: list[Any] = [None] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            results[index] = None
            seconds, results[index] = cpu_seconds(work)
            taken[index].append(seconds)
    return [(statistics.median(t), result) for t, result in zip(taken, results, strict=True)]


Cases = Mapping[str, Callable[[], Timing]]


def main(cases: Cases, about: str | None) -> None:
    """Run the cases that the command line names (all by default) and print what was found.

    With --json one object {case: figures} and nothing else goes to stdout; progress to stderr.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(cases)}")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(cases):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; choose of {', '.join(cases)}")
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for name in given.cases or cases:
        print(f"{name} …", file=sys.stderr, flush=True)
        gc.collect()
        found[name] = cases[name]().as_json()
        if not given.json:
            print(
                name,
                *(f"  {key:15} {_shown(value)}" for key, value in found[name].items()),
                sep="\n",
            )
    if given.json:
        print(json.dumps(found, allow_nan=False))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, str]:
    """Return what figures depend on: machine, Python and library versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return {"cpu": cpu, "python": platform.python_version(), "torch": torch.__version__}


# models ------------------------------------------------------------------------------------------


def gpt2_small(blocks: int = 12) -> PreTrainedModel:
    """Return a model of GPT-2's shape: 12 blocks of 768, MLP 3,072, vocabulary 50,257."""
    return _random(GPT2Config(n_layer=blocks))


def gpt2_xl_widths(blocks: int = 48) -> PreTrainedModel:
    """Return a model of GPT-2 XL's widths, 1,600 and 6,400, with as many blocks as asked for."""
    return _random(GPT2Config(n_embd=1600, n_head=25, n_layer=blocks))


def llama_128k(blocks: int = 8) -> PreTrainedModel:
    """Return a Llama of 1,024 with MLP 3,584 and the vocabulary of Llama 3, 128,256."""
    return _random(
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=1024,
            intermediate_size=3584,
            num_hidden_layers=blocks,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            rope_theta=500_000.0,
            tie_word_embeddings=False,
        )
    )


def _random(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model in eval mode, float32, with the library's own initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


# text --------------------------------------------------------------------------------------------


def data_folder() -> Path | None:
    """Return the folder of real samples that ERRATA_DATA names, if there is one."""
    folder = os.environ.get("ERRATA_DATA")
    return Path(folder) if folder and Path(folder).is_dir() else None


def tokenizer() -> PreTrainedTokenizerBase:
    """Return GPT-2's tokenizer from ERRATA_DATA, or a small one trained on made-up text."""
    folder = data_folder()
    if folder is not None:
        return AutoTokenizer.from_pretrained(folder / "tokenizers" / "gpt2")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        _made_texts(400, 60),
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def texts() -> list[str]:
    """Return the paragraphs of WikiText-2, or made-up ones of like length."""
    folder = data_folder()
    if folder is None:
        return _made_texts(1900, 90)
    lines = (folder / "text" / "wikitext2_raw_test_a.txt").read_text("utf-8").split("\n")
    return [line for line in lines if line.strip()]


def requests(count: int) -> list[EditRequest]:
    """Return edits of CounterFact, or made-up ones of like length; no subject occurs twice."""
    folder = data_folder()
    if folder is None:
        return [_made_request(i) for i in range(count)]
    records = json.loads((folder / "counterfact_flat.json").read_text("utf-8"))
    found: dict[str, EditRequest] = {}
    for record in records:
        subject = record["subject"]
        prompt = record["prompt"].replace(subject, "{}", 1)
        if subject not in found and prompt.count("{}") == 1:
            found[subject] = EditRequest(
                prompt=prompt, subject=subject, target=record["target_new"]
            )
        if len(found) == count:
            break
    return list(found.values())


PREFIXES = (
    "The name of the house was known to the many. ",
    "Therefore the man is a part of it now as. ",
    "Because of this the people of the town went on. ",
    "I was in the old part of the city on. ",
    "You can see that it is not the same thing. ",
)
"""Contexts of about ten tokens, as the published editors sample them from the model."""


def rewrites(count: int) -> list[Rewrite]:
    """Return edits in token ids: the bare prompt and five prefixed ones, and the essence."""
    reads = tokenizer()
    return [
        rewrite_of(
            reads,
            request,
            PREFIXES,
            where="subject_last",
            essence_prompt="{} is a",
            mean_by_type=True,
        )
        for request in requests(count)
    ]


_RELATIONS = ("mother tongue", "official religion", "capital city", "field of work", "employer")
_SYLLABLES = tuple("ka lo mir ten sa vor el dun ri pa sho ne ga tu bel fi con ar wen us".split())


def _made_request(index: int) -> EditRequest:
    return EditRequest(
        prompt=f"The {_RELATIONS[index % len(_RELATIONS)]} of {{}} is",
        subject=f"{_words(1, index).title()} {_words(1, index + 7919).title()} {index}",
        target=_words(1, index + 104_729).title(),
    )


def _words(count: int, seed: int) -> str:
    source = random.Random(seed)
    return " ".join(
        "".join(source.choices(_SYLLABLES, k=source.choice((1, 2, 2, 3)))) for _ in range(count)
    )


def _made_texts(count: int, mean: int) -> list[str]:
    """Return paragraphs whose lengths spread as those of articles do: headings and long ones."""
    source = random.Random(0)
    lengths: Iterable[int] = (
        source.randint(2, 6) if source.random() < 0.35 else int(source.gammavariate(3.0, mean / 2))
        for _ in range(count)
    )
    return [_words(max(2, length), index) for index, length in enumerate(lengths)]
