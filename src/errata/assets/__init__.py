"""Paths of the data files that ship with errata: the demo model, its invented world, and more.

`make demo-model` rebuilds the demo files.
"""

from __future__ import annotations

from pathlib import Path

ASSETS_DIR: Path = Path(__file__).resolve().parent / "demo"
MODEL_DIR: Path = ASSETS_DIR / "model"
WORLD_DIR: Path = ASSETS_DIR / "world"
MOMENTS_DIR: Path = Path(__file__).resolve().parent / "moments"
"""Second moments for the shipped presets of `smollm2`, packed (see `statistics.packed`)."""

__all__ = ["ASSETS_DIR", "MODEL_DIR", "MOMENTS_DIR", "WORLD_DIR"]
