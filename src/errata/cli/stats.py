"""`errata stats`: measure second moments, once per model, and keep them."""

from __future__ import annotations

from typing import Annotated

import typer

from errata import console
from errata.cli.options import Device, Dtype, Json, Model, cache_folder, load_model
from errata.errors import ErrataError


def stats(
    model: Model,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="demo, a .txt or .jsonl file, or hf:DATASET:CONFIG; the demo's own for `demo`."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks, comma-separated; those of the presets.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Stop after so many tokens; all when not given.")
    ] = None,
    length: Annotated[int, typer.Option(help="Cut every text at so many tokens.")] = 512,
    dtype: Dtype = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure the second moment of each block's keys over a corpus, in one pass, and keep it."""
    from errata.corpus import read_corpus
    from errata.statistics import Store

    name = corpus or ("demo" if model == "demo" else None)
    if name is None:
        raise ErrataError(
            "no corpus to measure on",
            "name one: --corpus FILE.txt, or --corpus hf:wikitext:wikitext-103-raw-v1",
        )
    edited = load_model(model, dtype=dtype, device=device)
    chosen = parse_blocks(blocks) if blocks else preset_blocks(edited)
    text = read_corpus(name)
    with console.bar("second moment") as progress:
        moments = Store(cache_folder() / "moments").get(
            edited, text, chosen, tokens=tokens, length=length, progress=progress
        )
    rows = []
    for block, moment in moments.items():
        width = moment.matrix.shape[0]
        rows.append(
            {
                "block": block,
                "tokens": moment.count,
                "dimensions": width,
                "tokens per dimension": round(moment.count / width, 1),
            }
        )
    if json:
        console.as_json({"model": model, "corpus": name, "moments": rows})
        return
    console.verb(f"errata stats {model}")
    console.fact(f"corpus {name}; kept in {cache_folder() / 'moments'}")
    console.table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    console.next_step(f'errata edit {model} "The {{subject}} is" target --method memit')


def parse_blocks(text: str) -> tuple[int, ...]:
    """Read "3,4,5"; raises `ErrataError` for anything else."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ErrataError(
            f"{text!r} is no list of blocks", "write it like --blocks 3,4,5"
        ) from None


def preset_blocks(edited: object) -> tuple[int, ...]:
    """Return the blocks that any method's preset (or guess) edits for this model."""
    from errata.family import family_of
    from errata.methods import METHODS
    from errata.model import EditedModel
    from errata.presets import settle

    assert isinstance(edited, EditedModel)
    count = family_of(edited.model).block_count(edited.model)
    found = [settle(method, edited.name, count, {})[0].edited_blocks for method in METHODS.values()]
    return tuple(sorted({block for blocks in found for block in blocks}))
