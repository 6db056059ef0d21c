"""Options that several verbs share, and flags generated from settings.

A settings field becomes a flag of its own name (`learning_rate` is `--learning-rate`), fields of
nested settings included; its docstring is the help. Lists are comma-separated.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from errata.cli import console
from errata.core.errors import ErrataError
from errata.core.files import reason
from errata.core.places import datasets_folder
from errata.core.settings import Settings

if TYPE_CHECKING:
    from errata.data.corpus import Corpus
    from errata.data.datasets import Loaded

Normalise = Annotated[
    bool,
    typer.Option(
        "--normalise",
        help="Give texts one Unicode form: plain spaces and quotes, no zero-width characters.",
    ),
]
System = Annotated[
    str | None, typer.Option(help="System message of the chat (default: the template's own).")
]
NoControls = Annotated[
    bool,
    typer.Option("--no-controls", help="Do not also ask the unedited model with facts in prompts."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Results = Annotated[Path, typer.Option("--results", help="The folder for runs.", metavar="DIR")]
SKIPPED_SHOWN = 5
"""Number of skipped records that are reported one by one."""
Command = TypeVar("Command", bound=Callable[..., Any])


def command_line() -> str:
    """Return the running command, to be recorded in its output."""
    return shlex.join(["errata", *sys.argv[1:]])


def named(model: str, patches: list[Path] | None = None, adapter: str | None = None) -> str:
    """Return a model and what is applied to it as arguments of a command."""
    below = ["--adapter", adapter] if adapter is not None and adapter.strip() else []
    on = [word for patch in patches or () for word in ("--patch", str(patch))]
    return shlex.join([model, *below, *on])


def load_dataset(
    name: str,
    limit: int | None,
    offset: int,
    seed: int | None,
    skip_invalid: bool,
    references: str | None = None,
    normalise: bool = False,
) -> Loaded:
    """Load cases as the command line names them; tells skipped records and unused fields."""
    from errata.data.datasets import load_cases, reference_file

    cache = datasets_folder()
    texts = None if references is None else reference_file(references, cache)
    loaded = load_cases(
        name,
        limit,
        offset,
        seed=seed,
        skip_invalid=skip_invalid,
        cache=cache,
        references=texts,
        normalise=normalise,
    )
    show_skipped(loaded.skipped)
    show_unused(loaded.unused)
    return loaded


def given_corpus(name: str | None) -> Corpus | None:
    """Read a corpus before the model is loaded; None stands for stored moments.

    Raises `ErrataError` for a corpus that cannot be read.
    """
    from errata.data.corpus import read_corpus

    return None if name is None else read_corpus(name)


def parse_blocks(text: str) -> tuple[int, ...]:
    """Read "3,4,5"; raises `ErrataError` for anything else."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ErrataError(
            f"{text!r} is not a list of blocks", "write it like --blocks 3,4,5"
        ) from None


def show_unused(fields: Sequence[str]) -> None:
    """Name the fields of a dataset that are not used."""
    if fields:
        console.progress_line(f"fields of the file that are not used: {', '.join(fields)}")


def show_skipped(problems: Sequence[str]) -> None:
    """Warn of the first skipped records, and of their number."""
    for problem in problems[:SKIPPED_SHOWN]:
        console.warning(f"skipped: {problem}")
    if len(problems) > SKIPPED_SHOWN:
        console.warning(f"skipped {len(problems)} invalid records in all")


def fields_of(settings: type[Settings]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield the path and field of every plain setting, those of nested settings included."""
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            for path, inner in fields_of(kind):
                yield (name, *path), inner
        else:
            yield (name,), field


def settings_flags(
    classes: Mapping[str, type[Settings]], defaults: bool = False
) -> Callable[[Command], Command]:
    """Give a command one flag per setting of these classes; it receives them as `given`.

    `given` holds those that were set, by name, as strings or booleans. `defaults` shows default
    values; leave it off where a model's preset may change them. The flags form a group of their
    own, titled after the only class, or after methods if there are several.
    """
    title = "Settings of the " + ("method" if len(classes) > 1 else next(iter(classes)))
    fields: dict[str, tuple[FieldInfo, list[str]]] = {}
    for label, settings in classes.items():
        for path, field in fields_of(settings):
            fields.setdefault(path[-1], (field, []))[1].append(label)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "given"]
        extra = [
            _flag(
                name,
                field,
                "" if len(owners) == len(classes) else ", ".join(owners),
                title,
                defaults,
            )
            for name, (field, owners) in fields.items()
        ]

        @wraps(command)
        def run(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in fields}
            return command(**arguments, given={k: v for k, v in given.items() if v is not None})

        run.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *extra)}
        return run  # type: ignore[return-value]

    return decorate


def _flag(name: str, field: FieldInfo, owners: str, title: str, default: bool) -> inspect.Parameter:
    """Return a setting's flag; `owners` are the methods that have it, if not all do."""
    flag = "--" + name.replace("_", "-")
    is_bool = field.annotation is bool
    text = (field.description or "") + (f" ({owners})" if owners else "")
    if default and field.default is not None:
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        text += f" [default: {('' if value else 'no-') + flag[2:] if is_bool else value}]"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_bool else flag,
        help=text.replace("[", "\\["),
        metavar=None if is_bool else _metavar(field),
        rich_help_panel=title,
    )
    kind = bool | None if is_bool else str | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(map(str, get_args(field.annotation)))
    if _holds(field, str) and _is_list(field):
        return "FILE"
    return "LIST" if _is_list(field) else "NUMBER" if _holds(field, int, float) else "TEXT"


def _is_list(field: FieldInfo) -> bool:
    return any(
        get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation))
    )


def _holds(field: FieldInfo, *kinds: type) -> bool:
    found = [field.annotation, *get_args(field.annotation)]
    found += [inner for kind in found for inner in get_args(kind)]
    return any(kind in kinds for kind in found)


def given_settings(method: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags as (nested) settings; raises `ErrataError` for flags the class does not have."""
    paths = {path[-1]: (path, field) for path, field in fields_of(method)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in paths:
            raise ErrataError(
                f"{method.__name__} has no setting --{name.replace('_', '-')}",
                f"its settings: {', '.join('--' + known.replace('_', '-') for known in paths)}",
            )
        path, field = paths[name]
        if _is_list(field) and isinstance(value, str):
            value = _lines(value) if _holds(field, str) else value.split(",")
        place = values
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return values


def _lines(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "give a text file with one text per line"
        ) from None


def show_warnings(notes: tuple[str, ...] | list[str]) -> None:
    """Show notes on stderr."""
    for note in notes:
        console.warning(note)
