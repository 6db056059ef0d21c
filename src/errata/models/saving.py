"""Saving a model as a checkpoint: the files of its source unchanged, and new weights.

The weights keep the names, files and dtypes of the source, and tensors that did not change keep
their bytes, so that whatever reads the source reads the checkpoint. Weights of other formats,
which would be those of the unedited model, are left out. A model that was not loaded from a folder
or the Hub is written by Transformers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.files import parse_json
from errata.models.older_form import write_json, write_older_form
from errata.models.quiet import quiet
from errata.models.stored_weights import NotStored, write_weights
from errata.models.tied import FLAG

CONFIG = "config.json"
WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx"),
    *("*.onnx_data*", "*.gguf", "*.npz", "*.pkl", "*.ot", "*.tflite", "*.index.json"),
)
"""Names of files with weights, in any format, and of their indices."""
OWN = ("errata.json", "patches")
"""What errata writes beside a checkpoint, about the edits in it."""
CARD, BASE_CARD = "README.md", "README.base.md"
"""A model card, and its name beside the card of the edited model."""


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model, its tokenizer and the other files of its source into an empty folder.

    The dtype in config.json changes if the model was loaded in another one, and
    `tie_word_embeddings` if the embeddings were untied; nothing else does.
    """
    source = source_folder(model)
    if source is None:
        _save_anew(model, folder)
        tokenizer.save_pretrained(folder)
        write_older_form(folder)
        return
    try:
        _save_like(source, model, folder)
    except NotStored:  # Transformers read it from elsewhere, or converted it
        for path in folder.iterdir():
            path.unlink()
        _save_anew(model, folder)
        write_older_form(folder)
    kept = (source / BASE_CARD).is_file()  # the source is itself an export
    names = {CARD: CARD if kept else BASE_CARD} | dict.fromkeys(OWN)
    _copy_files(source, folder, names)


def source_folder(model: PreTrainedModel) -> Path | None:
    """Return the folder from which a model was loaded, for a Hub name that of its snapshot.

    Files of the snapshot that were not needed for loading are downloaded where the Hub can be
    reached. None where there is no such folder.
    """
    name = model.name_or_path
    if not name or os.path.isdir(name):
        return Path(name) if name else None
    revision = getattr(model.config, "_commit_hash", None)
    try:
        with quiet():
            return Path(snapshot_download(name, revision=revision, ignore_patterns=list(WEIGHTS)))
    except (OSError, ValueError):  # not a name on the Hub, or not in its cache
        return None


def _save_anew(model: PreTrainedModel, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder)


def _save_like(source: Path, model: PreTrainedModel, folder: Path) -> None:
    """Write the weights, and config.json where it changes; raises `NotStored`."""
    config = parse_json((source / CONFIG).read_text(encoding="utf-8-sig"))
    dtype = str(model.dtype).removeprefix("torch.")
    declared = list(_declared(config))
    kept = [values[field] for values, field in declared[:1]] == [dtype]
    write_weights(source, model, folder, kept=kept)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    read = type(model.config).from_dict(dict(config)).get_text_config()
    changes: list[tuple[dict[str, Any], str, object]]
    changes = [(values, field, dtype) for values, field in declared if not kept]
    if bool(read.tie_word_embeddings) != tied:
        changes += [(values, FLAG, tied) for values in _levels(config)]
    for values, field, value in changes:
        values[field] = value
    if changes:
        write_json(folder / CONFIG, config)


def _levels(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a configuration, and its text model's if that is separate."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def _declared(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where a configuration names a dtype, if anywhere."""
    for values in _levels(config):
        for field in ("dtype", "torch_dtype"):
            if isinstance(values.get(field), str):
                yield values, field


def _copy_files(source: Path, folder: Path, names: Mapping[str, str | None]) -> None:
    """Copy all files without weights that are not there yet.

    `names` gives another name to some, or None to those left out. Folders within are copied too,
    except hidden ones and those that hold another model.
    """
    for path in sorted(source.iterdir()):
        name = names.get(path.name, path.name)
        if name is None or (target := folder / name).exists():
            continue
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in WEIGHTS):
            shutil.copyfile(path, target)
        elif path.is_dir() and not _left_out(path):
            target.mkdir()
            _copy_files(path, target, {})
            if not any(target.iterdir()):
                target.rmdir()


def _left_out(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.is_symlink()
    return hidden or any((folder / name).is_file() for name in (CONFIG, "adapter_config.json"))
