"""Silencing libraries whose progress bars and warnings are no output of errata."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of Transformers within a `with` block.

    The same for bitsandbytes, which warns of optional parts when it is imported.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    other = logging.getLogger("bitsandbytes")
    other_level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        other.setLevel(other_level)
        if bars:
            transformers_logging.enable_progress_bar()
