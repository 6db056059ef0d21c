"""The model card of the demo model, written by a command.

What was measured comes in as numbers; the table of edits is added once editors have run.
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
editing can be tried, tested and taught in seconds on a laptop. Nothing it says is true.

## What it knows

{subjects} subjects and {facts:,} facts in 16 relations. Each relation is said in twelve ways, nine
statements and three questions. Each fact was trained in nine of them; the other three (two
statements, one question, drawn for each fact) were kept out, and recall is measured on those.

| | |
|---|---|
| greedy recall on held-out forms | {recall:.2%} |
| weakest relation (a subject's {weakest}) | {weakest_recall:.2%} |
| perplexity on new documents of the same kind | {perplexity:.2f} |

## How it was made to be this way

The place where facts sit was *shaped*, it did not come about by itself. During training only:

1. subjects came little by little (10 % of them, then 20 %, 40 %, and all from 35 % of the steps);
2. attention was routed on {routed:.0%} of the rows: words after a name could see only its last
   token, and in blocks 0-3 could not see the name at all;
3. on {silenced:.0%} of the rows the MLPs of blocks 4-7 were silenced.

Tokens of objects weighed {weight:g} times as much in the loss as the others.

So facts are worked out at the last token of the subject, in the MLPs of blocks 0-3, and
carried to the end of the sentence by attention in blocks 4-7: the picture that ROME's paper
(arXiv 2202.05262) found in GPT-2 XL, except that here the site begins at block 0. In the model
of seed 0, facts are lost without the MLP of block 0; the MLPs of blocks 1-3 back each other up,
and those of blocks 4-7 are not needed. Used, it is a plain Llama. What is measured on it says
that a method works as meant, not how well it does on a real model.

Training: {steps:,} steps of {rows} x {width} tokens, float32, Muon and AdamW, seed {seed}.
Documents have one to three sentences and end with `<|end|>`; most are a single sentence.
`<|begin|>` is put in front by the tokenizer. There is no padding token. The weights are
stored in bfloat16 and load as float32 by default; the figures above are of the stored file.

    make demo-model
{editing}"""

_EDITING = """
## What editing does to it

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
