"""A tuning as a run on disk.

    results/tune/run_<NNN>/  params.json summary.json report.md loss.json loss.png
                             adapter/ (PEFT) or checkpoint/ (full tuning)

Checkpoints of the training are in `work/` until the run is finished; an interrupted run resumes
from them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.core.files import write_text, writing_folder
from errata.core.progress import Progress, no_progress
from errata.data.instructions import Instruction, digest_of
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.metrics.likelihood import Likelihood, likelihoods
from errata.metrics.scores import Score, share
from errata.models.identity import model_hash, versions
from errata.models.saving import save_model
from errata.patches.adapter import RECORD, find_tuned, is_adapter, merge_adapter, read_adapter
from errata.patches.base import Edit
from errata.patches.edited_model import EditedModel, load
from errata.patches.weight_patch import add, weight_patches
from errata.reports.loss_figure import write_curve
from errata.reports.tables import markdown_table
from errata.tuning.settings import TuneSettings
from errata.tuning.train import TuningResult, check_tuning, tune

MOVED_SHOWN = 12
"""Maximum number of changed weights listed in the report."""


def run_tuning(
    edited: EditedModel,
    rows: Sequence[Instruction],
    settings: TuneSettings,
    results: Path,
    *,
    source: str = "",
    command: str | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], Path]:
    """Tune a model with its patches and save the result; return the summary and the folder.

    Afterwards the model is tuned and the patches are part of its weights. Raises `ErrataError` for
    settings that do not fit the model, before the folder is made.
    """
    check_tuning(edited, settings)
    patches = tuple(edited.patches)
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in patches],
        "settings": settings.model_dump(mode="json"),
        "data": {"source": source, "rows": len(rows), "digest": digest_of(rows)},
    }
    with run_folder(results, "tune", params, command) as (folder, _):
        before = _edit_likelihoods(edited, patches)
        for name in ("adapter", "checkpoint"):
            shutil.rmtree(folder / name, ignore_errors=True)
        adapter = folder / "work.adapter"
        tuned = tune(edited, rows, settings, folder / "work", adapter=adapter, progress=progress)
        made = _save(edited, patches, settings, folder, params)
        write_curve(tuned, folder)
        summary = _summary(
            edited, tuned, settings, made, before, _edit_likelihoods(edited, patches)
        )
        heading = f"tune, {folder.name}: {edited.name}"
        write_results(folder, heading, _sections(summary, settings), summary, command=command)
        for name in ("work", "work.adapter"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return summary, folder


def _save(
    edited: EditedModel,
    patches: Sequence[Edit],
    settings: TuneSettings,
    folder: Path,
    params: dict[str, Any],
) -> Path:
    """Save the adapter, or the whole model, with a record of its origin; return its folder."""
    full = settings.method == "full"
    made = folder / ("checkpoint" if full else "adapter")
    with writing_folder(made) as temporary:
        if full:
            save_model(edited.model, edited.tokenizer, temporary)
        else:
            for path in (folder / "work.adapter").iterdir():
                if path.is_file():
                    shutil.copyfile(path, temporary / path.name)
        files = [f"patches/patch_{i:03d}.safetensors" for i in range(len(patches))]
        for patch, file in zip(patches, files, strict=True):
            patch.save(temporary / file)
        record = {
            "format": 1,
            "tuned": params,
            "below": files,
            "above": files if settings.reapply and not full else [],
            "weights": model_hash(edited.model),
            "versions": versions(),
        }
        write_text(temporary / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_text(temporary / "README.md", _card(edited, patches, settings))
    return made


def _card(edited: EditedModel, patches: Sequence[Edit], settings: TuneSettings) -> str:
    facts = sum(len(patch.provenance.requests) for patch in patches)
    what = "A full checkpoint" if settings.method == "full" else f"A {settings.method} adapter"
    lines = [f"# {Path(edited.name).name}, tuned", f"{what}, tuned with errata."]
    if patches and settings.method != "full":
        lines.append(
            f"It was tuned on top of {len(patches)} patches with {facts} edited facts, which are "
            "in `patches/`. `errata.load(base, adapter=…)` applies them before the adapter; other "
            "programs need the edited model as the base: `errata export … --to merged`."
        )
    elif patches:
        lines.append(f"It was tuned from a model with {facts} edited facts.")
    return "\n\n".join(lines) + "\n"


def take_tuned(edited: EditedModel, run: Path) -> bool:
    """Load the result of a tuning run into the model that it started from; False if missing."""
    tuned = find_tuned(str(run))
    if tuned.checkpoint is not None:
        model = load(tuned.checkpoint, dtype=edited.model.dtype, device=edited.model.device).model
        edited.model = model
    elif is_adapter(str(tuned.adapter)):
        merge_adapter(edited.model, str(tuned.adapter), read_adapter(str(tuned.adapter)))
        for patch in weight_patches(tuned.above):
            for name, update in patch.updates.items():
                add(edited.model, name, update.delta())
    else:
        return False
    edited.bake()
    return True


def _edit_likelihoods(edited: EditedModel, patches: Sequence[Edit]) -> list[Likelihood]:
    """Return the likelihood of the target of each edited fact."""
    pairs = [
        (request.text, request.answer) for patch in patches for request in patch.provenance.requests
    ]
    return likelihoods(edited, pairs) if pairs else []


def _summary(
    edited: EditedModel,
    tuned: TuningResult,
    settings: TuneSettings,
    made: Path,
    before: Sequence[Likelihood],
    after: Sequence[Likelihood],
) -> dict[str, Any]:
    last = [loss for _, loss in tuned.losses[-max(1, len(tuned.losses) // 20) :]]
    recalled = {
        name: share([each.likeliest for each in some])
        for name, some in (("edits_said_before", before), ("edits_said_after", after))
    }
    return {
        "made": made.name,
        "weights": model_hash(edited.model),
        "steps": tuned.steps,
        "rows": tuned.rows,
        "cut": tuned.cut,
        "dropped": tuned.dropped,
        "trained_numbers": tuned.numbers,
        "moved": list(tuned.moved),
        "loss": sum(last) / len(last),
        "validation_loss": tuned.validation[-1][1] if tuned.validation else None,
        "guards": {
            "shift_penalty": settings.shift_penalty,
            "project": settings.project,
            "reapply": settings.reapply,
        },
        **{name: score.model_dump() for name, score in recalled.items() if score is not None},
    }


def _sections(summary: dict[str, Any], settings: TuneSettings) -> list[str]:
    """Return the sections of the report."""
    rows = [
        ["method", settings.method],
        ["blocks", settings.blocks],
        ["steps", str(summary["steps"])],
        ["rows", f"{summary['rows']} ({summary['cut']} truncated, {summary['dropped']} dropped)"],
        ["learning rate", f"{settings.rate:g}"],
        ["trained parameters", f"{summary['trained_numbers']:,}"],
        ["training loss, mean of the last steps", f"{summary['loss']:.4f}"],
    ]
    if summary["validation_loss"] is not None:
        rows.append(["validation loss", f"{summary['validation_loss']:.4f}"])
    for name, label in (("before", "before tuning"), ("after", "after")):
        if f"edits_said_{name}" in summary:
            rows.append([f"edits recalled, {label}", str(Score(**summary[f"edits_said_{name}"]))])
    rows += [
        ["shift penalty at edited positions", f"{settings.shift_penalty:g}"],
        ["updates projected off the edit keys", "yes" if settings.project else "no"],
        ["patches reapplied after tuning", "yes" if settings.reapply else "no"],
    ]
    moved = summary["moved"]
    shown = ", ".join(f"`{name}`" for name in moved[:MOVED_SHOWN])
    more = f" and {len(moved) - MOVED_SHOWN} more" if len(moved) > MOVED_SHOWN else ""
    return [
        markdown_table(("", ""), rows),
        f"Changed weights: {shown}{more}.",
        "![loss](loss.png)",
        f"Saved in `{summary['made']}/`; `errata.load(base, adapter=…)` loads it.",
    ]
