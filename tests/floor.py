"""Print the constraints of `make floor`: the oldest supported versions of the core's libraries.

These come from pyproject.toml; all other packages, torch among them, stay as constraints.txt
pins them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORED = ("transformers", "accelerate", "safetensors", "huggingface_hub")


def floors() -> dict[str, str]:
    """Return the oldest version of each floored package that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["tune"]]
    found = (re.match(r"([\w-]+)>=([\d.]+)", need) for need in needs)
    oldest = {match[1]: match[2] for match in found if match}
    return {name: oldest[name] for name in FLOORED}


def constraints() -> str:
    """Return constraints.txt with the floored packages at their oldest version."""
    oldest = floors()
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line for line in lines if line.partition("==")[0].lower() not in oldest]
    return "\n".join([*kept, *(f"{name}=={version}" for name, version in oldest.items())])


if __name__ == "__main__":
    print(constraints())
