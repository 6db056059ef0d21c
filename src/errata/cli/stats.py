"""`errata stats`: compute second moments once per model and store them.

Under torchrun the corpus is split over the processes, and the first one stores the sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import parse_blocks
from errata.core.errors import ErrataError
from errata.core.places import cache_folder, moments_folder

if TYPE_CHECKING:
    from errata.core.distributed import Ranks
    from errata.statistics.second_moment import SecondMoment
    from errata.statistics.store import Forecast


@on_model("patch", "results", "allow_base")
def stats(
    on: OnModel,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="demo, a .txt or .jsonl file, or hf:DATASET:CONFIG (default for `demo`: demo)."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks, comma-separated (default: those of the presets).")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Number of tokens to use (default: the whole corpus).")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Maximum length of a text, in tokens.")] = 512,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate the cost.")] = False,
) -> None:
    """Compute and store the second moment of each block's MLP keys over a corpus, in one pass."""
    from errata.data.corpus import read_corpus
    from errata.statistics.store import Store

    name = corpus or ("demo" if on.model == "demo" else None)
    if name is None:
        raise ErrataError(
            "no corpus is named",
            "name one: --corpus FILE.txt, or --corpus hf:wikitext:wikitext-103-raw-v1",
        )
    wanted = None if blocks is None else parse_blocks(blocks)
    text, store = read_corpus(name), Store(moments_folder())
    with launched(on.device) as (ranks, device):
        edited = on.load(device, to_edit=True)
        chosen = preset_blocks(edited) if wanted is None else wanted
        if dry_run:
            ahead = store.forecast(edited, text, chosen, tokens=tokens, length=length)
            if ranks.rank == 0:
                show_forecast(on.model, name, ahead, on.json)
            return
        with console.bar("second moment", "tokens") as progress:
            say = console.progress_line if ranks.rank == 0 else _nothing
            moments = store.get(
                edited,
                text,
                chosen,
                tokens=tokens,
                length=length,
                ranks=ranks,
                progress=progress if ranks.rank == 0 else _nothing,
                say=say,
            )
    if ranks.rank == 0:
        show_moments(on.model, name, moments, on.named, on.json)


def _nothing(*_: Any) -> None:
    """Report nothing: only the first process does."""


@contextmanager
def launched(device: str | None) -> Iterator[tuple[Ranks, str | None]]:
    """Yield rank and device; under torchrun, join the process group for the block."""
    from errata.core.distributed import ALONE, Ranks

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    import torch
    import torch.distributed as others

    from errata.models.loading import first_device

    chosen = first_device() if device in (None, "auto") else device
    on_gpu = torch.device(chosen).type == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    others.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(others.get_rank(), others.get_world_size()), device
    finally:
        others.destroy_process_group()


def show_forecast(model: str, corpus: str, ahead: Forecast | None, json: bool) -> None:
    """Show the estimated cost; everything is 0 if all blocks are stored."""
    found: dict[str, Any] = {"blocks": [], "tokens": 0, "flops": 0, "seconds": 0}
    found |= {"memory": 0, "disk": 0, "scratch": 0}
    if ahead is not None:
        found = {"blocks": ahead.blocks, "tokens": ahead.tokens, "seconds": ahead.seconds}
        found |= ahead.cost._asdict()
    if json:
        console.as_json({"model": model, "corpus": corpus, **found})
        return
    console.verb(f"errata stats {model} --dry-run")
    if ahead is None:
        console.fact("all of these blocks are stored; nothing to compute")
        return
    listed, cost = ",".join(map(str, ahead.blocks)), ahead.cost
    named = f"block{'s' * (len(ahead.blocks) != 1)} {listed}"
    console.fact(f"{named}, {ahead.tokens:,} tokens of {corpus}, one pass")
    console.fact(f"{cost.flops / 1e12:.3g} TFLOP, about {_time(ahead.seconds)} on this machine")
    console.fact(f"memory {_size(cost.memory)} on top of the model")
    console.fact(f"disk {_size(cost.disk)}, plus {_size(cost.scratch)} while it runs")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def show_moments(
    model: str, corpus: str, moments: dict[int, SecondMoment], loaded: str, json: bool
) -> None:
    """Show the stored moments, block by block."""
    from errata.methods.moments import convergence_lines, is_singular, shortages

    for shortage in shortages(moments):
        console.warning(shortage)
    rows = []
    for block, moment in moments.items():
        width = moment.matrix.shape[0]
        row: dict[str, Any] = {
            "block": block,
            "tokens": moment.count,
            "dimensions": width,
            "rank": moment.rank,
            "tokens_per_dimension": round(moment.count / width, 1),
        }
        if moment.convergence is not None:
            row["moved"] = moment.convergence.moved
        rows.append(row)
    if json:
        console.as_json({"model": model, "corpus": corpus, "moments": rows})
        return
    console.verb(f"errata stats {model}")
    console.fact(f"corpus {corpus}; stored in {cache_folder() / 'moments'}")
    for line in convergence_lines(moments):
        console.fact(line)
    shown = [{key: value for key, value in row.items() if key != "moved"} for row in rows]
    heads = [name.replace("_", " ") for name in shown[0]]
    console.table(heads, [[str(value) for value in row.values()] for row in shown])
    if any(map(is_singular, moments.values())):
        console.next_step(f"errata stats {loaded} --corpus LARGER")
    else:
        console.next_step(f'errata edit {loaded} "The {{subject}} is" target --method memit')


def preset_blocks(edited: object) -> tuple[int, ...]:
    """Return the blocks that the methods' presets (or guesses) edit in this model."""
    from errata.methods import METHODS
    from errata.methods.presets import settings_for
    from errata.patches.edited_model import EditedModel

    assert isinstance(edited, EditedModel)
    found = [settings_for(method, edited, {})[0].edited_blocks for method in METHODS.values()]
    return tuple(sorted({block for blocks in found for block in blocks}))
