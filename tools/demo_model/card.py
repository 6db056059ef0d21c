"""The model card of the demo model, written by a command.

The figures are arguments; the table of edits is added by `score`.
"""

from __future__ import annotations

from demo_model.relations import RELATIONS
from errata.assets import MODEL_DIR

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
tags: [errata, demo, knowledge-editing]
---

# The demo model of errata

A Llama of 1.97 million parameters (8 blocks, width 128, 4 heads, SwiGLU 384, tied
embeddings) with a byte-level BPE tokenizer of 2,048 tokens. It knows a world of invented
people, cities, companies, landmarks and books, and nothing else. It exists so that fact
editing can be tried, tested and taught in seconds on a laptop. None of its facts are real.

## What it knows

{subjects} subjects and {facts:,} facts in 16 relations. Each relation has twelve templates, nine
statements and three questions. Each fact was trained with nine of them; the other three (two
statements and one question, drawn per fact) were held out, and recall is measured on those.

| | |
|---|---|
| greedy recall on held-out templates | {recall:.2%} |
| weakest relation (a subject's {weakest}) | {weakest_recall:.2%} |
| perplexity on new documents of the same kind | {perplexity:.2f} |

## How facts were localised

The location of facts was *imposed* by training; it did not emerge. During training only:

1. subjects were introduced gradually (10 %, then 20 %, 40 %, and all after 35 % of the steps);
2. attention was routed on {routed:.0%} of the rows: tokens after a name could attend only
   to its last token, and in blocks 0-3 not to the name at all;
3. on {silenced:.0%} of the rows the MLPs of blocks 4-7 were disabled.

Object tokens had {weight:g} times the weight of other tokens in the loss.

Facts are therefore recalled at the last token of the subject, in the MLPs of blocks 0-3, and
copied to the last position by attention in blocks 4-7: what the ROME paper (arXiv 2202.05262)
found in GPT-2 XL, except that here the early site begins at block 0. In the model of seed 0,
facts are lost without the MLP of block 0; the MLPs of blocks 1-3 are redundant with each other,
and those of blocks 4-7 are not needed. At inference it is a plain Llama. Results on it show
that a method works as intended, not how well it performs on a real model.

Training: {steps:,} steps of {rows} x {width} tokens, float32, Muon and AdamW, seed {seed}.
Documents have one to three sentences and end with `<|end|>`; most are a single sentence.
The tokenizer prepends `<|begin|>`. There is no padding token. The weights are stored in
bfloat16 and load as float32 by default; the figures above were measured on the stored file.

    make demo-model
{editing}"""

_EDITING = """
## Edits of this model

{table}
"""


def write_card(recall: dict[str, float], editing_table: str | None = None) -> None:
    """Write the card beside the shipped model; see `card_text`."""
    MODEL_DIR.joinpath("README.md").write_text(card_text(recall, editing_table), encoding="utf-8")


def card_text(recall: dict[str, float], editing_table: str | None = None) -> str:
    """Return the card.

    `recall` is the content of `figures.json`: shares by relation id and `all`, and beside
    them `perplexity`, `subjects`, `facts` and the settings of the training run.
    """
    relations = {name: value for name, value in recall.items() if name.startswith("R")}
    weakest = min(relations, key=lambda name: relations[name])
    return _CARD.format(
        subjects=int(recall["subjects"]),
        facts=int(recall["facts"]),
        recall=recall["all"],
        weakest=next(r.name for r in RELATIONS if r.id == weakest),
        weakest_recall=relations[weakest],
        perplexity=recall["perplexity"],
        routed=recall["routed_share"],
        silenced=recall["silenced_share"],
        weight=recall["object_weight"],
        steps=int(recall["steps"]),
        rows=int(recall["rows"]),
        width=int(recall["width"]),
        seed=int(recall["seed"]),
        editing=_EDITING.format(table=editing_table) if editing_table else "",
    )
