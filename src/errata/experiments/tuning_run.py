"""A tuning as a run on disk.

    results/tune/run_<NNN>/  params.json summary.json report.md loss.json loss.png
                             adapter/ (PEFT) or checkpoint/ (full tuning)

While it is at work, checkpoints stand in `work/`; a run that was stopped goes on from there.
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
from errata.models.loading import quiet
from errata.patches.adapter import RECORD, find_tuned, is_adapter, merge_adapter, read_adapter
from errata.patches.base import Edit
from errata.patches.edited_model import EditedModel, load
from errata.patches.weight_patch import add, weight_patches
from errata.reports.loss_figure import write_curve
from errata.reports.tables import markdown_table
from errata.tuning.settings import TuneSettings
from errata.tuning.train import TuningResult, check_tuning, tune

MOVED_SHOWN = 12


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
    """Tune a model as it stands and keep it; return the summary and the run's folder.

    The model ends tuned, its patches part of its weights. Raises `ErrataError` for settings that
    do not fit it, before the folder is made.
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
        before = _kept(edited, patches)
        for name in ("adapter", "checkpoint"):
            shutil.rmtree(folder / name, ignore_errors=True)
        adapter = folder / "work.adapter"
        tuned = tune(edited, rows, settings, folder / "work", adapter=adapter, progress=progress)
        made = _keep(edited, patches, settings, folder, params)
        write_curve(tuned, folder)
        summary = _summary(edited, tuned, settings, made, before, _kept(edited, patches))
        heading = f"tune, {folder.name}: {edited.name}"
        write_results(folder, heading, _sections(summary, settings), summary, command=command)
        for name in ("work", "work.adapter"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return summary, folder


def _keep(
    edited: EditedModel,
    patches: Sequence[Edit],
    settings: TuneSettings,
    folder: Path,
    params: dict[str, Any],
) -> Path:
    """Put the adapter, or the whole model, into its place with a record of what it is."""
    full = settings.method == "full"
    made = folder / ("checkpoint" if full else "adapter")
    with writing_folder(made) as temporary:
        if full:
            with quiet():
                edited.model.save_pretrained(temporary)
                edited.tokenizer.save_pretrained(temporary)
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
    what = "A whole checkpoint" if settings.method == "full" else f"A {settings.method} adapter"
    lines = [f"# {Path(edited.name).name}, tuned", f"{what} that errata tuned."]
    if patches and settings.method != "full":
        lines.append(
            f"It was tuned on top of {len(patches)} patches with {facts} edited facts, which stand "
            "in `patches/`. `errata.load(base, adapter=…)` puts them on first; other programs "
            "need the edited model as its base: `errata export … --to merged`."
        )
    elif patches:
        lines.append(f"{facts} edited facts were part of it when tuning began.")
    return "\n\n".join(lines) + "\n"


def take_tuned(edited: EditedModel, run: Path) -> bool:
    """Put what a run made onto a model as it stood before it; False where that is gone."""
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


def _kept(edited: EditedModel, patches: Sequence[Edit]) -> list[Likelihood]:
    """Return the likelihood of each edited fact's answer."""
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
    said = {
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
        **{name: score.model_dump() for name, score in said.items() if score is not None},
    }


def _sections(summary: dict[str, Any], settings: TuneSettings) -> list[str]:
    """Return the sections of the report."""
    rows = [
        ["method", settings.method],
        ["blocks", settings.blocks],
        ["steps", str(summary["steps"])],
        ["rows", f"{summary['rows']} ({summary['cut']} cut, {summary['dropped']} left out)"],
        ["learning rate", f"{settings.rate:g}"],
        ["numbers trained", f"{summary['trained_numbers']:,}"],
        ["loss, mean of the last steps", f"{summary['loss']:.4f}"],
    ]
    if summary["validation_loss"] is not None:
        rows.append(["loss on the rows set aside", f"{summary['validation_loss']:.4f}"])
    for name, label in (("before", "before tuning"), ("after", "after")):
        if f"edits_said_{name}" in summary:
            rows.append([f"edits said, {label}", str(Score(**summary[f"edits_said_{name}"]))])
    rows += [
        ["penalty on shifts at edited positions", f"{settings.shift_penalty:g}"],
        ["updates kept off the edits' keys", "yes" if settings.project else "no"],
        ["patches added once more afterwards", "yes" if settings.reapply else "no"],
    ]
    moved = summary["moved"]
    shown = ", ".join(f"`{name}`" for name in moved[:MOVED_SHOWN])
    more = f" and {len(moved) - MOVED_SHOWN} more" if len(moved) > MOVED_SHOWN else ""
    return [
        markdown_table(("", ""), rows),
        f"What moved: {shown}{more}.",
        "![loss](loss.png)",
        f"Kept in `{summary['made']}/`; `errata.load(base, adapter=…)` loads it.",
    ]
