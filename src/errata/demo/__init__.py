"""The embedded demo model: a small Llama and the world of invented facts that it knows.

This file names where the shipped files stand; it imports nothing heavy. The modules beside
it make them again: `python -m errata.demo.build`.
"""

from __future__ import annotations

from pathlib import Path

ASSETS_DIR: Path = Path(__file__).resolve().parent / "assets"
MODEL_DIR: Path = ASSETS_DIR / "model"
WORLD_DIR: Path = ASSETS_DIR / "world"

__all__ = ["ASSETS_DIR", "MODEL_DIR", "WORLD_DIR"]
