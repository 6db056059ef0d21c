"""`errata export`: an edited model as a LoRA folder, or as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.options import (
    Adapter,
    AdapterKind,
    AllowBase,
    Device,
    Dtype,
    Json,
    Model,
    Patches,
    command_line,
    load_model,
    named,
    show_warnings,
)
from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from errata.patches.export import Export

TARGETS = ("lora", "merged")


def export(
    model: Model,
    to: Annotated[
        tuple[str, Path],
        typer.Option(
            help="lora: a PEFT adapter, exact. merged: a plain checkpoint with the edits in it.",
            metavar="lora|merged DIR",
        ),
    ],
    *,
    patch: Patches = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cut a LoRA to this rank by truncated SVD; what is lost is measured."
        ),
    ] = None,
    rank_pattern: Annotated[
        bool,
        typer.Option(
            "--rank-pattern", help="Let each weight keep its own rank; not every server reads it."
        ),
    ] = False,
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Write an edited model for others to load: a LoRA adapter, or a merged checkpoint."""
    target, folder = to
    below = adapter if adapter is not None and adapter.strip() else None
    if target not in TARGETS:
        raise ErrataError(f"cannot export to {target!r}", f"choose one of {', '.join(TARGETS)}")
    if target == "merged" and (rank is not None or rank_pattern):
        raise ErrataError("only a LoRA has a rank", "say --to lora DIR, or leave the rank out")
    if not patch and (target == "lora" or below is None):
        from errata.patches.export import no_patch

        raise no_patch(below)

    from errata.core.files import check_folder
    from errata.patches.export import export_lora, export_merged

    check_folder(folder)
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
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
    if json:
        _as_json(model, written, patch or [])
    else:
        _show(model, written, len(edited.patches), below)


def _as_json(model: str, written: Export, patches: list[Path]) -> None:
    from errata.patches.lora import served_rank

    console.as_json(
        {
            "model": model,
            "target": written.target,
            "path": str(written.path),
            "patches": [str(path) for path in patches],
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
        console.fact(f"{below} of them had been there when the adapter was tuned")
    if written.loss:
        console.table(
            ("weight", "rank", "lost"),
            [
                [name, str(written.ranks.get(name, "-")), f"{100 * lost:.2g} %"]
                for name, lost in written.loss.items()
            ],
        )
    console.fact(f"wrote {written.path}; its README.md holds the recipe")
    if written.rank is None:
        console.next_step(f'errata chat {written.path} -p "…"')
        return
    served = served_rank(written.rank)
    if served is not None:
        console.fact(f"rank {written.rank}: vLLM takes it with --max-lora-rank {served}")
    alone = () if adapter else (f'errata chat {model} --adapter {written.path} -p "…"',)
    merged = f"errata export {named(model, None, adapter)} … --to merged DIR"
    console.next_step(*alone, f"{merged}   for servers without LoRA")
