"""The options that every verb that acts on a model has: one decorator, and what it hands over.

    @on_model()
    def ppl(on: OnModel, *, text: …) -> None:

gives `ppl` the argument MODEL before its own parameters and --patch, --results, --adapter,
--adapter-kind, --dtype, --device, --allow-base and --json after them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.options import Command, Json, Results, named

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel

Model = Annotated[
    str,
    typer.Argument(help="A Hub name, a folder, a GGUF file, `smollm2` or `demo`.", metavar="MODEL"),
]
Patches = Annotated[
    list[Path] | None,
    typer.Option(
        "--patch", help="A patch to apply to the model; may be repeated, applied in order."
    ),
]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, float64, or auto (as stored).")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 … or auto, the default: the first GPU, or the CPU."),
]
AllowBase = Annotated[
    bool,
    typer.Option("--allow-base", help="Apply patches even if they were made for another base."),
]
Adapter = Annotated[
    str | None,
    typer.Option(help="A PEFT LoRA or DoRA folder to merge into the model.", metavar="DIR"),
]
AdapterKind = Annotated[
    str | None, typer.Option(help="The kind the adapter must have: lora or dora.", metavar="KIND")
]
REQUIRED = inspect.Parameter.empty
FLAGS: dict[str, tuple[Any, Any]] = {
    "model": (Model, REQUIRED),
    "patch": (Patches, None),
    "results": (Results, Path("results")),
    "adapter": (Adapter, None),
    "adapter_kind": (AdapterKind, None),
    "dtype": (Dtype, "auto"),
    "device": (Device, None),
    "allow_base": (AllowBase, False),
    "json": (Json, False),
}
"""The shared options in the order of `--help`, each with its annotation and default."""


@dataclass(frozen=True)
class OnModel:
    """The model that a verb acts on, as the command line names it, and where its output goes."""

    model: str
    patch: list[Path] | None = None
    results: Path = Path("results")
    adapter: str | None = None
    adapter_kind: str | None = None
    dtype: str = "auto"
    device: str | None = None
    allow_base: bool = False
    json: bool = False

    def load(self, device: str | None = None, *, to_edit: bool = False) -> EditedModel:
        """Load the model with its adapter and patches, onto `device` if one is given.

        With `to_edit`, models that can be used but not edited are an `ErrataError`.
        """
        import torch

        from errata.models.loading import first_device
        from errata.patches.edited_model import load

        if self.model == "demo":
            torch.set_num_threads(1)  # more threads only slow down so small a model
        return load(
            self.model,
            adapter=self.adapter,
            adapter_kind=self.adapter_kind,
            dtype=self.dtype,
            device=device or self.device or first_device(),
            patches=self.patch or (),
            allow_base=self.allow_base,
            to_edit=to_edit,
            say=console.progress_line,
        )

    @property
    def patches(self) -> list[str]:
        """The paths of the patches, for JSON."""
        return [str(path) for path in self.patch or ()]

    @property
    def named(self) -> str:
        """The model and everything applied to it, as arguments of another command."""
        return named(self.model, self.patch, self.adapter)


def on_model(*without: str) -> Callable[[Command], Command]:
    """Give a command the shared options except those in `without`; it receives them as `on`."""
    taken = {name: flag for name, flag in FLAGS.items() if name not in without}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in ("on", "given")]
        given = [p for p in signature.parameters.values() if p.name == "given"]
        first, *rest = (
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, (annotation, default) in taken.items()
        )
        first = first.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [first, *own, *rest, *given]

        @wraps(command)
        def run(**arguments: Any) -> Any:
            on = OnModel(**{name: arguments.pop(name) for name in taken})
            return command(on, **arguments)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run  # type: ignore[return-value]

    return decorate
