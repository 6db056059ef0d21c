"""Default folders, which are the same for the Python API and the command line.

The only module that reads the environment for them, when they are needed and not at import.
"""

from __future__ import annotations

import os
from pathlib import Path

RESULTS = Path("results")
"""The folder for runs, in the working directory."""


def cache_folder() -> Path:
    """Return the cache folder: $ERRATA_CACHE, or `errata` in the user's cache folder."""
    if "ERRATA_CACHE" in os.environ:
        return Path(os.environ["ERRATA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "errata"


def moments_folder() -> Path:
    """Return the folder of the default store of second moments."""
    return cache_folder() / "moments"


def datasets_folder() -> Path:
    """Return the folder of downloaded datasets."""
    return cache_folder() / "datasets"


def presets_folder() -> Path:
    """Return the folder of the user's own presets: $ERRATA_PRESETS, or in the cache folder."""
    if "ERRATA_PRESETS" in os.environ:
        return Path(os.environ["ERRATA_PRESETS"])
    return cache_folder() / "presets"
