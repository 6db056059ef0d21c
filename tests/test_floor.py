"""The oldest versions that pyproject.toml allows are those that `make floor` tests, and true."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from floor import FLOORED, ROOT, constraints, floors


def test_only_the_floored_packages_have_other_pins() -> None:
    usual = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    changed = set(constraints().splitlines()) ^ set(usual)
    assert {line.partition("==")[0] for line in changed} <= set(FLOORED)
    assert {f"{name}=={version}" for name, version in floors().items()} <= set(
        constraints().splitlines()
    )


def test_the_floors_are_what_the_oldest_transformers_itself_asks_for() -> None:
    from packaging.version import Version
    from transformers.utils import import_utils

    floor = {name: Version(version) for name, version in floors().items()}
    if Version(importlib.metadata.version("transformers")) != floor["transformers"]:
        pytest.skip("make floor asks this of the oldest transformers")
    needs = " ".join(importlib.metadata.requires("transformers") or ())
    for name in ("safetensors", "huggingface_hub"):
        asked = re.search(rf"{name.replace('_', '[-_]')}[^;]*?>=([\d.]+)", needs)
        assert asked is not None
        assert floor[name] == Version(asked[1])
    assert floor["accelerate"] == Version(import_utils.ACCELERATE_MIN_VERSION)
    for name, version in floor.items():
        assert Version(importlib.metadata.version(name)) == version
