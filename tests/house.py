"""The rooms of the house and what each may import, read off the source tree.

`read_house` parses a package; each check takes what it read and returns one line per
violation; `house_files` holds the checks that look at one file alone. Imports within
functions count like those at the top of a file; those under `if TYPE_CHECKING:` may point
sideways in a circle, but not upwards.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "errata"

# Room → the rooms it may import from, itself aside. The order is the direction: downwards only.
ROOMS: dict[str, tuple[str, ...]] = {
    "core": (),
    "assets": (),
    "data": ("core", "assets"),
    "models": ("core", "assets"),
    "patches": ("core", "data", "models"),
    "statistics": ("core", "assets", "data", "models", "patches"),
    "metrics": ("core", "data", "models", "patches"),
    "tuning": ("core", "data", "models", "patches"),
    "methods": ("core", "assets", "data", "models", "patches", "statistics"),
    "tracing": ("core", "models", "metrics"),
    "reports": ("core", "metrics", "tracing", "tuning"),
    "experiments": (
        *("core", "data", "models", "patches", "statistics", "metrics", "tuning"),
        *("methods", "tracing", "reports"),
    ),
    "cli": (
        *("core", "assets", "data", "models", "patches", "statistics", "metrics", "tuning"),
        *("methods", "tracing", "reports", "experiments"),
    ),
    "ui": (
        *("core", "assets", "data", "models", "patches", "statistics", "metrics", "tuning"),
        *("methods", "tracing", "reports", "experiments"),
    ),
}
ENTRANCES = ("__init__", "__main__")  # beside the rooms: `import errata` and `python -m errata`

# Modules that import without torch, beside `core`, `data`, `cli` and every method.
LIGHT = (
    *("tracing.settings", "tuning.settings", "experiments.survival.settings"),
    "experiments.calibration.settings",
    *("experiments.recipe.schema", "experiments.recipe.yaml_text"),
)

HEAVY = ("torch", "transformers", "accelerate", "safetensors.torch")
EXTRAS = (
    *("accelerate", "bitsandbytes", "datasets", "gguf", "lm_eval", "matplotlib", "nltk", "optuna"),
    *("peft", "sentencepiece", "sklearn", "statsmodels"),
)

DRIVER = "ClosedForm"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module: ours by its name inside the package, any other by its full name."""

    target: str
    ours: bool
    line: int
    at_top: bool
    for_types: bool


@dataclass(frozen=True)
class Module:
    """One file of the package: its name inside the package, where it is, what it says."""

    name: str
    path: Path
    source: str

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


House = dict[str, Module]


def read_house(root: Path) -> House:
    """Read every module under `root`, the folder of the package."""
    house = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        house[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return house


def room_of(name: str) -> str | None:
    """Return the room of a module ("" for the entrances), None for a module in no room."""
    first, _, rest = (name or "__init__").partition(".")
    if first in ENTRANCES and not rest:
        return ""
    return first if first in ROOMS else None


def is_or_within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def shown(name: str) -> str:
    """Return a module's full name."""
    return f"{PACKAGE}.{name}" if name else PACKAGE


def place(module: Module, line: int) -> str:
    """Return where a line stands, for a message."""
    return f"{shown(module.name)}:{line}"


def statements(
    node: ast.AST, at_top: bool = True, for_types: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Yield each node below, whether it runs at import, and whether it is for types only."""
    for field, value in ast.iter_fields(node):
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        typed = for_types or (guarded and field == "body")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child, at_top, typed
                inside = at_top and not isinstance(child, Function | ast.Lambda)
                yield from statements(child, inside, typed)


def imports_of(module: Module, house: House) -> Iterator[Import]:
    """Yield what a module imports, relative imports resolved, names of submodules included."""
    for node, at_top, for_types in statements(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [PACKAGE, *module.name.split(".")] if module.name else [PACKAGE]
                depth = len(here) - node.level + module.is_package
                base = ".".join([*here[:depth], *([base] if base else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            ours = is_or_within(target, (PACKAGE,))
            name = target.removeprefix(PACKAGE).removeprefix(".") if ours else target
            while ours and name and name not in house:
                name = name.rpartition(".")[0]
            yield Import(name, ours, node.lineno, at_top, for_types)


def check_rooms(house: House) -> list[str]:
    """Every module lies in a room; a room is a package."""
    return [
        f"{shown(module.name)} lies in no room"
        for module in house.values()
        if room_of(module.name) is None or (module.name in ROOMS and not module.is_package)
    ]


def check_directions(house: House) -> list[str]:
    """A room imports only from the rooms that its row names."""
    found = []
    for module in house.values():
        here = room_of(module.name)
        for each in imports_of(module, house):
            there = room_of(each.target) if each.ours else None
            if here and there is not None and there != here and there not in ROOMS[here]:
                found.append(f"{place(module, each.line)} imports upwards: {shown(each.target)}")
    return found


def check_circles(house: House) -> list[str]:
    """No circle of imports, those for types left out."""
    graph = {
        module.name: {
            each.target
            for each in imports_of(module, house)
            if each.ours and not each.for_types and each.target != module.name
        }
        for module in house.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["a circle: " + " ← ".join(map(shown, error.args[1]))]
    return []


def check_methods(house: House) -> list[str]:
    """A method imports no other method, and what methods share imports none of them."""
    methods = methods_of(house)
    return [
        f"{place(module, each.line)} imports {shown(each.target)}"
        for module in house.values()
        if module.name in methods or module.name.startswith("methods.closed_form")
        for each in imports_of(module, house)
        if each.ours and (each.target in methods or each.target == "methods")
    ]


def methods_of(house: House) -> set[str]:
    """Return the modules that define a method: those that methods/__init__.py imports."""
    if "methods" not in house:
        return set()
    imported = {each.target for each in imports_of(house["methods"], house) if each.ours}
    imported -= {"methods.base"}  # the protocol, which every method imports
    return {name for name in imported if name.startswith("methods.") and name.count(".") == 1}


def check_protocol(house: House) -> list[str]:
    """Outside `methods`, a method is known by its protocol alone, not as a closed form."""
    found = []
    for module in house.values():
        if room_of(module.name) == "methods":
            continue
        for each in imports_of(module, house):
            if each.ours and is_or_within(each.target, ("methods.closed_form",)):
                found.append(f"{place(module, each.line)} imports {shown(each.target)}")
        for node in ast.walk(module.tree):
            names = [getattr(node, "id", None), getattr(node, "attr", None)]
            if isinstance(node, ast.ImportFrom):
                names += [alias.name for alias in node.names]
            if DRIVER in names:
                found.append(f"{place(module, node.lineno)} names {DRIVER}")  # type: ignore[attr-defined]
    return found


def check_entrances(house: House) -> list[str]:
    """Nobody imports the command line or the browser app, but a `__main__` and the command line."""
    return [
        f"{place(module, each.line)} imports {shown(each.target)}"
        for module in house.values()
        if not is_or_within(module.name, ("cli", "ui"))
        if module.name.rpartition(".")[2] != "__main__"
        for each in imports_of(module, house)
        if each.ours and is_or_within(each.target, ("cli", "ui"))
    ]


def check_light(house: House) -> list[str]:
    """Settings, data, methods, the command line and the package itself import without torch."""
    light = {"", "__main__", "methods", *LIGHT, *methods_of(house)}
    found = []
    for name in house:
        if name == "cli.tour":  # a program of its own, which no verb imports
            continue
        if name in light or room_of(name) in ("core", "assets", "data", "cli"):
            found += heavy_chains(name, house)
    return found


def heavy_chains(start: str, house: House) -> list[str]:
    """Return the ways, one for each module reached, by which importing `start` imports torch."""
    found, seen, waiting = [], set[str](), [(start,)]
    while waiting:
        way = waiting.pop()
        if way[-1] in seen or way[-1] not in house:
            continue
        seen.add(way[-1])
        for each in imports_of(house[way[-1]], house):
            if not each.at_top or each.for_types:
                continue
            if not each.ours and is_or_within(each.target, HEAVY):
                chain = " → ".join([*map(shown, way), each.target.partition(".")[0]])
                found.append(f"{place(house[way[-1]], each.line)}: {chain}")
                break
            if each.ours:  # importing a.b runs a/__init__.py as well
                parts = each.target.split(".")
                waiting += [(*way, ".".join(parts[: i + 1])) for i in range(len(parts))]
    return found


def check_extras(house: House) -> list[str]:
    """Extras are imported where they are used, so that the core imports without them."""
    return [
        f"{place(module, each.line)} imports {each.target.partition('.')[0]} at the top"
        for module in house.values()
        for each in imports_of(module, house)
        if not each.ours and each.at_top and not each.for_types
        if is_or_within(each.target, EXTRAS)
    ]
