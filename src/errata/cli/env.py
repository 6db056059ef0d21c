"""`errata env`: versions and devices, for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

from errata.cli import console
from errata.cli.options import Json
from errata.core.places import cache_folder
from errata.core.version import __version__

PACKAGES = (
    *("torch", "transformers", "safetensors", "pydantic"),
    *("peft", "accelerate", "datasets", "lm_eval", "scikit-learn", "nltk", "matplotlib", "gguf"),
)


def env(json: Json = False) -> None:
    """Show versions, devices and folders, for bug reports."""
    import torch

    versions = {"errata": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    system = {"python": platform.python_version(), "system": platform.platform()}
    if json:
        console.as_json(
            {**system, "devices": devices, "cache": str(cache_folder()), "packages": versions}
        )
        return
    console.verb("errata env")
    for name, value in system.items():
        console.fact(f"{name} {value}")
    console.fact(f"devices: {', '.join(devices)}")
    console.fact(f"cache: {cache_folder()}")
    console.table(("package", "version"), [[name, version] for name, version in versions.items()])
