"""Text and requests: from the folder of samples that ERRATA_DATA names, or made up and as long."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from errata.data.request import EditRequest
from errata.methods.closed_form.rewrite import Rewrite, rewrite_of


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


def rewrites(count: int, reads: PreTrainedTokenizerBase | None = None) -> list[Rewrite]:
    """Return edits in token ids: the bare prompt and five prefixed ones, and the essence.

    `reads` is the model's tokenizer (default: `tokenizer`).
    """
    reads = reads or tokenizer()
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
