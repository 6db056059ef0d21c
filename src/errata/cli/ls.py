"""`errata ls`: what there is: patches, methods, families, presets, datasets, statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli import console
from errata.cli.options import Json, Results, fields_of
from errata.core.errors import ErrataError
from errata.core.places import datasets_folder, moments_folder
from errata.methods import METHODS
from errata.methods.presets import presets


def list_things(
    what: Annotated[
        str, typer.Argument(help="patches, methods, families, presets, datasets or stats.")
    ] = "patches",
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """List patches, methods, families, presets, datasets or stored statistics."""
    listings = {
        "patches": lambda: _patches(results),
        "methods": _methods,
        "families": _families,
        "presets": _presets,
        "datasets": _datasets,
        "stats": _stats,
    }
    if what not in listings:
        raise ErrataError(f"cannot list {what!r}", f"choose one of {', '.join(listings)}")
    rows = listings[what]()
    if json:
        console.as_json({what: rows})
        return
    console.verb(f"errata ls {what}")
    if not rows:
        console.fact("none yet")
        return
    rows = [_with_mark(row) for row in rows]
    columns = list(rows[0])
    console.table(columns, [[str(row[column]) for column in columns] for row in rows])


def _patches(results: Path) -> list[dict[str, Any]]:
    from errata.patches.base import load_edit

    rows = []
    for path in sorted(results.glob("*/run_*/patch*.safetensors")):
        try:
            patch = load_edit(path)
        except ErrataError as error:
            console.warning(error.message)
            continue
        rows.append(
            {
                "patch": str(path),
                "model": patch.provenance.base.name,
                "kind": patch.kind,
                "method": patch.provenance.method,
                "edits": patch.summary,
                "kB": round(patch.size / 1000, 1),
            }
        )
    return rows


def _methods() -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "what": (method.__doc__ or "").splitlines()[0],
            "settings": ", ".join(path[-1] for path, _ in fields_of(method)),
        }
        for name, method in METHODS.items()
    ]


def _families() -> list[dict[str, Any]]:
    from errata.models.families import FAMILIES

    return [
        {"model_type": name, "edited weight": f"{family.blocks}.N.{family.block_mlp_out}"}
        for name, family in FAMILIES.items()
    ]


def _presets() -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "method": method,
            "blocks": ",".join(str(b) for b in preset.settings.get("blocks", ())),
            "source": preset.source,
            "tuned with a defect": preset.defect or "none known",
            "notes": "; ".join(preset.notes),
        }
        for model, methods in presets().items()
        for method, preset in methods.items()
    ]


def _datasets() -> list[dict[str, Any]]:
    from errata.data.datasets import DATASETS, file_here

    files = {name: file_here(name, datasets_folder()) for name in DATASETS}
    return [
        {
            "dataset": name,
            "what": dataset.about,
            "source": dataset.source,
            "file": None if files[name] is None else str(files[name]),
        }
        for name, dataset in DATASETS.items()
    ]


def _with_mark(row: dict[str, Any]) -> dict[str, Any]:
    """Put a word in the place of a dataset's file, whose path a table has no room for."""
    shown = {key: value for key, value in row.items() if key != "file"}
    return shown | ({"offline": "no" if row["file"] is None else "yes"} if "file" in row else {})


def _stats() -> list[dict[str, Any]]:
    from errata.statistics.store import Store

    rows = []
    for path, moment in Store(moments_folder()).stored():
        if moment.identity is not None:
            rows.append(
                {
                    "weight": moment.identity.weight,
                    "base": moment.identity.weights[:12],
                    "tokens": moment.count,
                    "dtype": moment.identity.dtype,
                    "path": str(path),
                }
            )
    return rows
