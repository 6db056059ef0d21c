"""`errata export`: an edited model as a LoRA adapter, or as a merged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import command_line, named, show_warnings
from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from errata.patches.export import Export

TARGETS = ("lora", "merged")


@on_model("results")
def export(
    on: OnModel,
    to: Annotated[
        tuple[str, Path],
        typer.Option(
            help="lora: an exact PEFT adapter. merged: a plain checkpoint that contains the edits.",
            metavar="lora|merged DIR",
        ),
    ],
    *,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Truncate the LoRA to this rank by SVD; the error is reported."),
    ] = None,
    rank_pattern: Annotated[
        bool,
        typer.Option(
            "--rank-pattern", help="Give each weight its own rank; not all servers support it."
        ),
    ] = False,
) -> None:
    """Export an edited model as a LoRA adapter or a merged checkpoint."""
    target, folder = to
    below = on.adapter if on.adapter is not None and on.adapter.strip() else None
    if target not in TARGETS:
        raise ErrataError(f"cannot export to {target!r}", f"choose one of {', '.join(TARGETS)}")
    if target == "merged" and (rank is not None or rank_pattern):
        raise ErrataError("only a LoRA has a rank", "use --to lora DIR, or omit the rank")
    if not on.patch and (target == "lora" or below is None):
        from errata.patches.export import no_patch

        raise no_patch(below)

    from errata.core.files import check_folder
    from errata.patches.export import export_lora, export_merged

    check_folder(folder)
    edited = on.load()
    if target == "lora":
        written = export_lora(
            edited,
            folder,
            rank=rank,
            rank_pattern=rank_pattern,
            adapter=below,
            command=command_line(),
        )
    else:
        written = export_merged(edited, folder, adapter=below, command=command_line())
    show_warnings(written.notes)
    if on.json:
        _as_json(on, written)
    else:
        _show(on.model, written, len(edited.patches), below)


def _as_json(on: OnModel, written: Export) -> None:
    from errata.patches.lora import served_rank

    console.as_json(
        {
            "model": on.model,
            "target": written.target,
            "path": str(written.path),
            "patches": on.patches,
            "patches_below": written.below,
            "rank": written.rank,
            "max_lora_rank": None if written.rank is None else served_rank(written.rank),
            "weights": sorted(written.loss),
            "ranks": dict(written.ranks),
            "loss": dict(written.loss),
            "notes": list(written.notes),
        }
    )


def _show(model: str, written: Export, on_top: int, adapter: str | None) -> None:
    from errata.patches.lora import served_rank

    count, below = on_top + written.below, written.below
    console.verb(f"errata export {model}, {count} patch{'es' * (count != 1)}")
    if below:
        console.fact(f"{below} of them were applied before the adapter was tuned")
    if written.loss:
        console.table(
            ("weight", "rank", "relative error"),
            [
                [name, str(written.ranks.get(name, "-")), f"{100 * lost:.2g} %"]
                for name, lost in written.loss.items()
            ],
        )
    console.fact(f"saved {written.path}; its README.md describes how to load it")
    if written.rank is None:
        console.next_step(f'errata chat {written.path} -p "…"')
        return
    served = served_rank(written.rank)
    if served is not None:
        console.fact(f"rank {written.rank}: vLLM needs --max-lora-rank {served}")
    alone = () if adapter else (f'errata chat {model} --adapter {written.path} -p "…"',)
    merged = f"errata export {named(model, None, adapter)} … --to merged DIR"
    console.next_step(*alone, f"{merged}   for servers without LoRA")
