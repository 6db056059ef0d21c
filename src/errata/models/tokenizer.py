"""Loading a tokenizer, with errors that say which file or package is missing."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.own_code import own_code
from errata.models.quiet import quiet

FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "tokenizer_config.json"),
)
"""Files of which a tokenizer has at least one."""
SLOW = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files of SentencePiece, which are converted when there is no tokenizer.json."""
PACKAGES = ("sentencepiece", "google.protobuf")
"""Packages that the conversion of a SentencePiece file needs."""


def load_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `name` from a folder or the Hub.

    Raises `ErrataError` if there is none, if it is damaged, or if reading it needs a package that
    is not installed.
    """
    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False
            )
            return found
    except MemoryError:
        raise
    except Exception as error:  # any: foreign files are run through much foreign code
        raise _not_read(name, Path(source), error) from None


def _not_read(name: str, folder: Path, error: Exception) -> ErrataError:
    """Return the error that explains why a tokenizer cannot be loaded."""
    if own := own_code(name, error):
        return own
    present = [file for file in FILES if (folder / file).is_file()]
    if folder.is_dir() and not set(present) - {"tokenizer_config.json"}:
        return ErrataError(
            f"the folder {name} has no tokenizer",
            "copy tokenizer.json and tokenizer_config.json of the original model into it",
        )
    slow = [folder / file for file in SLOW if file in present]
    if "tokenizer.json" not in present and any(_is_tiktoken(path) for path in slow):
        return ErrataError(
            f"{slow[0]} is a file of tiktoken, and there is no tokenizer.json",
            "copy tokenizer.json and tokenizer_config.json of the original model into its folder",
        )
    convertible = "tokenizer.json" not in present and (slow or not folder.is_dir())
    if convertible and not all(map(_installed, PACKAGES)):
        return ErrataError(
            f"reading the tokenizer of {name} needs an extra: it has no tokenizer.json",
            "pip install 'errata-lm[sentencepiece]'",
            "or copy tokenizer.json of the original model into its folder",
        )
    if convertible and any(not _is_sentencepiece(path) for path in slow):
        return ErrataError(
            f"{slow[0]} is not a SentencePiece model that can be read",
            "copy it again from the original model, or copy its tokenizer.json",
        )
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ErrataError(
        f"the tokenizer of {name} cannot be read: {cause}",
        "copy its files again from the original model: tokenizer.json, tokenizer_config.json",
    )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _is_tiktoken(path: Path) -> bool:
    """Whether a file has the lines of tiktoken: a token in base64, and its rank."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?", file.readline(1000)) is not None


def _is_sentencepiece(path: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        return bool(SentencePieceProcessor().LoadFromSerializedProto(path.read_bytes()))
    except (RuntimeError, OSError):
        return False


def limit_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Note how many ids a model has embeddings for, which `encode` checks.

    Checkpoints may have tokens without an embedding, such as one for padding or for images. Raises
    `ErrataError` if the input embedding is offloaded: the device of its weights is that of inputs.
    """
    if model.get_input_embeddings().weight.is_meta:
        raise ErrataError(
            "the model's input embedding is offloaded, so prompts cannot be read",
            "load the model onto one device, or keep the embedding and the edited blocks in memory",
        )
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(module.weight.shape[0] for module in modules if module is not None)
    tokenizer.embedding_rows = max(rows, embedding_rows(tokenizer) or 0)


def embedding_rows(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many ids the tokenizer's model has embeddings for, None where it is not known."""
    return vars(tokenizer).get("embedding_rows")


def pad_id(tokenizer: PreTrainedTokenizerBase, *others: int | None) -> int:
    """Return the first of its padding id, `others` and 0 for which the model has an embedding."""
    rows = embedding_rows(tokenizer)
    ids = [token for token in (tokenizer.pad_token_id, *others) if token is not None]
    return next((token for token in ids if 0 <= token and (rows is None or token < rows)), 0)
