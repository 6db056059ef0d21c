"""A user's folder, with everything that can be wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wrong_files import write_all


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; what tests write goes elsewhere."""
    folder = tmp_path_factory.mktemp("user")
    write_all(folder)
    return folder
