"""GGUF files: dequantised once by Transformers' loader, and kept in the cache as a model folder.

Every value is the one that `gguf` dequantises. Q4_1, for example, stores 4-bit q with float16 d and
m for d·q + m, which neither float16 nor bfloat16 represents, so such weights are kept in float32;
a file of plain float16 or bfloat16 weights stays in that dtype.

Transformers' loader ignores tensors that it does not know and takes defaults for settings that it
does not read; `gguf_config` completes those, and a file with values left over is an error.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import Counter
from contextlib import redirect_stderr
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.versions import require_version

from errata.core.errors import ErrataError
from errata.core.files import reason, require_space, writing_folder
from errata.core.locks import locked
from errata.core.places import cache_folder
from errata.core.progress import Say, say_nothing
from errata.models.checkpoint import ORIGINAL
from errata.models.families import check_config
from errata.models.gguf_config import (
    FREQUENCIES,
    complete_tokenizer,
    completed_config,
    has_known_scaling,
    value_of,
)
from errata.models.older_form import write_older_form

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX = ".gguf"
REVISION = 2
"""Part of the cache key; raised when the conversion changes, so that older ones are not used."""
LOADER = "transformers>=5.23"
"""Earlier versions read some tokenizers differently from the models' own."""
QUANTISATION = "gguf_quantisation"
"""The field of the converted model's config.json that names the quantisation of the file."""
ARCHITECTURES = ("gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen3")
"""The values of `general.architecture` that Transformers' loader and the families share."""
PLAIN = ("F32", "F16", "BF16", "F64")
"""Tensor types without quantisation."""
UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError)
"""Exceptions that reading a damaged or unsupported file raises."""
SECONDS_PER_GB = 200
"""Rough time of a conversion per GB of the file, on one core."""
NARROW = (torch.bfloat16, torch.float16)
"""Dtypes in which the weights are stored if that loses nothing; otherwise it is float32."""


def converted(path: Path, say: Say = say_nothing) -> Path:
    """Return the model folder of a GGUF file, converting it if it is not in the cache.

    A lock keeps two processes from converting the same file. `say` reports a conversion. Raises
    `ErrataError` for a file that cannot be read or whose model is not supported.
    """
    name = f"{path.stem}-{_digest(path)[:16]}"
    folder = cache_folder() / "models" / name
    if folder.exists():
        return folder
    reader = _reader(path)
    _check_architecture(path, reader)
    values = sum(int(tensor.n_elements) for tensor in reader.tensors)
    wait = f"another process is converting {path.name}; waiting for it"
    with locked(folder.parent / f".{name}.lock", lambda: say(wait)):
        if folder.exists():
            return folder
        for left in folder.parent.glob(f".{escape(name)}.*.part"):  # of killed processes
            shutil.rmtree(left, ignore_errors=True)
        require_space(folder.parent, 4 * values, f"the dequantised weights of {path.name}")
        seconds = max(5, round(path.stat().st_size / 1e9 * SECONDS_PER_GB, -1))
        say(f"converting {path.name} once to {folder}: about {seconds:.0f} s")
        with writing_folder(folder) as temporary:
            _convert(path, reader, temporary)
    return folder


def quantisation(model: PreTrainedModel) -> str | None:
    """Return the quantisation of the GGUF file that a model was converted from, None without."""
    found = getattr(model.config, QUANTISATION, None)
    return found if isinstance(found, str) else None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except (OSError, ValueError) as error:  # ValueError: the name contains a NUL
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "give the path of a GGUF file"
        ) from None
    digest.update(f"revision {REVISION}".encode())
    return digest.hexdigest()


def _reader(path: Path) -> GGUFReader:
    """Open a GGUF file; raises `ErrataError` if it is damaged or `gguf` is not installed."""
    try:
        from gguf import GGUFReader

        require_version("accelerate")  # Transformers reads no GGUF file without it
    except ImportError:
        raise ErrataError(
            "reading GGUF files needs an extra", "pip install 'errata-lm[gguf]'"
        ) from None
    try:
        require_version(LOADER)
    except ImportError:
        raise ErrataError(f"reading GGUF files needs {LOADER}", f"pip install '{LOADER}'") from None
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ErrataError(
                f"{path} is not a GGUF file", "was its download interrupted? load another copy"
            )
        return GGUFReader(path)
    except (*UNREADABLE, MemoryError) as error:
        raise ErrataError(
            f"{path} is a damaged GGUF file: {(reason(error).splitlines() or ['it is cut'])[0]}",
            "was its download interrupted? load another copy",
        ) from None


def _check_architecture(path: Path, reader: GGUFReader) -> None:
    """Raise `ErrataError` for a file whose model cannot be loaded as one of the families."""
    architecture = value_of(reader, "general.architecture")
    if int(value_of(reader, "split.count") or 0) > 1:
        raise ErrataError(
            f"{path} is one of {value_of(reader, 'split.count')} parts of a model",
            "join them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )
    if architecture not in ARCHITECTURES:
        raise ErrataError(
            f"GGUF files of architecture {architecture!r} cannot be loaded",
            f"supported architectures: {', '.join(ARCHITECTURES)}",
            ORIGINAL,
        )
    if not has_known_scaling(reader):
        raise ErrataError(
            f"{path} scales its rotary positions in a way that cannot be loaded from GGUF",
            ORIGINAL,
        )


def _convert(path: Path, reader: GGUFReader, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a Hugging Face folder."""
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with redirect_stderr(io.StringIO()):  # the loader has a progress bar of its own
            config = completed_config(reader, place)
            check_config(config)
            model, info = AutoModelForCausalLM.from_pretrained(
                **place,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(**place, trust_remote_code=False)
    except UNREADABLE as error:
        raise ErrataError(
            f"cannot load {path}: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            ORIGINAL,
        ) from None
    _check_complete(path, reader, model, sorted(info["missing_keys"]))
    complete_tokenizer(tokenizer, reader)
    dtype = _narrowest(model)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    if quantised := _quantisation(reader):
        setattr(config, QUANTISATION, quantised)
    with torch.device("meta"):  # a bare model: `save_pretrained` refuses one loaded from GGUF
        bare = type(model)(config)
    bare.load_state_dict(model.to(dtype).state_dict(), assign=True)
    bare.tie_weights()
    bare.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_older_form(folder)


def _check_complete(
    path: Path, reader: GGUFReader, model: PreTrainedModel, missing: list[str]
) -> None:
    """Raise `ErrataError` unless the model took every value of the file and needs no other.

    Transformers skips tensors that it does not know, biases among them.
    """
    held = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != FREQUENCIES)
    taken = sum(parameter.numel() for parameter in model.parameters())
    if held != taken or missing:
        lacking = f", and {missing[0]} is missing" if missing else ""
        raise ErrataError(
            f"{path} does not fit a model of type {model.config.model_type}: it holds {held:,} "
            f"weights, and the model has {taken:,}{lacking}",
            ORIGINAL,
        )


def _narrowest(model: PreTrainedModel) -> torch.dtype:
    """Return a 16-bit dtype if it represents every weight exactly, else float32."""
    for dtype in NARROW:
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in model.parameters()):
            return dtype
    return torch.float32


def _quantisation(reader: GGUFReader) -> str | None:
    """Return the name of a file's quantisation, such as Q4_1 or Q4_K_M; None if it has none."""
    from gguf import LlamaFileType

    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    if not sizes.keys() - set(PLAIN):
        return None
    known = {int(kind): kind.name.removeprefix("MOSTLY_") for kind in LlamaFileType}
    named = known.get(int(value_of(reader, "general.file_type") or 0), "")
    most = sizes.most_common(1)[0][0]
    # The file type is written by a converter and may be wrong; the largest share decides.
    return named if named.startswith(most) else most
