"""Paths of the data files that ship with errata: the demo model, its invented world, the presets.

`make demo-model` rebuilds the demo files.
"""

from __future__ import annotations

from pathlib import Path

ASSETS_DIR: Path = Path(__file__).resolve().parent / "demo"
MODEL_DIR: Path = ASSETS_DIR / "model"
WORLD_DIR: Path = ASSETS_DIR / "world"

__all__ = ["ASSETS_DIR", "MODEL_DIR", "WORLD_DIR"]
