"""`errata ls`: lists of patches, methods, families, presets, datasets and second moments.

Patches and moments are listed from their headers: no tensor is read, and no torch is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli import console
from errata.cli.options import Json, Results, fields_of
from errata.core.errors import ErrataError
from errata.core.files import parse_json
from errata.core.places import datasets_folder, moments_folder
from errata.data.request import EditRequest
from errata.methods import METHODS
from errata.methods.presets import own_presets, presets, shipped_files


def list_things(
    what: Annotated[
        str, typer.Argument(help="patches, methods, families, presets, datasets or stats.")
    ] = "patches",
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """List patches, methods, families, presets, datasets or stored second moments."""
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
        console.fact("none")
        return
    rows = [_with_mark(row) for row in rows]
    columns = list(rows[0])
    console.table(columns, [[str(row[column]) for column in columns] for row in rows])


def _patches(results: Path) -> list[dict[str, Any]]:
    from errata.experiments.run_folder import by_number

    rows = []
    for path in sorted(results.glob("*/run_*/patch*.safetensors"), key=by_number):
        try:
            header = _header(path)
            kind = "weight" if header["format"] == 1 else header["kind"]
            edits = _edits(path, header)
            base, method = header["base"]["name"], header["method"]
        except (OSError, ValueError, LookupError, TypeError, ErrataError):
            _warn_of_damage(path)
            continue
        rows.append(
            {
                "patch": str(path),
                "model": base,
                "kind": kind,
                "method": method,
                "edits": edits,
                "kB": round(header["size"] / 1000, 1),
            }
        )
    return rows


def _edits(path: Path, header: dict[str, Any]) -> str:
    """Return a summary of an edit; its file is read completely only if the header has none."""
    requests = [EditRequest.of(each) for each in header.get("requests", ())]
    if not requests or header.get("kind", "weight") != "weight":
        from errata.patches.base import load_edit

        return load_edit(path).summary
    first, more = requests[0], len(requests) - 1
    return f"{first.marked} → {first.target}" + (f" and {more} more" if more else "")


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a file written by errata, and the `size` of its tensors in bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        with safe_open(path, framework="numpy") as stored:
            header = parse_json((stored.metadata() or {}).get("errata", ""))
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if not isinstance(header, dict):
        raise ValueError("it has no header written by errata")
    return {**header, "size": path.stat().st_size - 8 - length}


def _warn_of_damage(path: Path) -> None:
    """Warn of a patch that cannot be listed, with the error that loading it raises."""
    from errata.patches.base import load_edit

    try:
        load_edit(path)
        console.warning(f"{path} cannot be listed: its header is damaged")
    except ErrataError as error:
        console.warning(error.message)


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
        {
            "model_type": name,
            "edited weight": "none: a mixture of experts"
            if family.experts
            else f"{family.blocks}.N.{family.block_mlp_out}",
        }
        for name, family in FAMILIES.items()
    ]


def _presets() -> list[dict[str, Any]]:
    published = [
        _preset_row(model, method, preset.settings, preset.source, "not recorded")
        | {"tuned with a defect": preset.defect or "none known", "notes": "; ".join(preset.notes)}
        for model, methods in presets().items()
        for method, preset in methods.items()
    ]
    calibrated = [(f"shipped: {each.model.name}", each) for each in shipped_files()]
    for path, own in own_presets().items():
        if isinstance(own, ErrataError):
            console.warning(own.message)
        else:
            calibrated.append((f"own: {path.name}", own))
    return published + [
        _preset_row(each.model.name, each.method, each.settings, where, each.evidence.line())
        | {"tuned with a defect": "none known", "notes": "; ".join(each.notes)}
        for where, each in calibrated
    ]


def _preset_row(
    model: str, method: str, settings: dict[str, Any], source: str, evidence: str
) -> dict[str, Any]:
    return {
        "model": model,
        "method": method,
        "blocks": ",".join(str(b) for b in settings.get("blocks") or ()),
        "source": source,
        "evidence": evidence,
    }


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
    """Replace the path of a dataset's file, too long for a table, by yes or no."""
    shown = {key: value for key, value in row.items() if key != "file"}
    return shown | ({"offline": "no" if row["file"] is None else "yes"} if "file" in row else {})


def _stats() -> list[dict[str, Any]]:
    rows = []
    for path in sorted(moments_folder().glob("*/*.safetensors")):
        try:
            header = _header(path)
            identity = header["identity"] or {}
            row = {
                "weight": identity["weight"],
                "base": identity["weights"][:12],
                "tokens": int(header["count"]),
                "dtype": identity["dtype"],
                "path": str(path),
            }
        except (OSError, ValueError, LookupError, TypeError):
            continue
        rows.append(row)
    return rows
