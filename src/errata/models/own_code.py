"""Checkpoints that bring their own Python code (`auto_map`): it never runs.

Where `trust_remote_code` is not given, Transformers asks on stdin whether the code may run; every
call of its loaders therefore passes False. Transformers then loads known architectures by its own
classes and raises an error for the others.
"""

from __future__ import annotations

from errata.core.errors import ErrataError

ARGUMENT = "trust_remote_code"
"""Part of Transformers' error for a checkpoint that needs its own code."""


def own_code(name: str, error: BaseException) -> ErrataError | None:
    """Return the error for a checkpoint that needs its own code; None if `error` is another."""
    if ARGUMENT not in str(error):
        return None
    return ErrataError(
        f"{name} needs code of its own (`auto_map`), which is never run",
        "load a version of the model whose architecture is part of Transformers; many names on "
        "the Hub have one that ends in -hf",
    )
