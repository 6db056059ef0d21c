"""The rules that hold within one file: its name, its size, who prints, no state."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from house import Function, House, place, shown

MAX_FILE_LINES = 300
MAX_BODY_LINES = 50
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}

MAY_PRINT = ("cli.console",)
PRINTERS = {
    *("print", "pprint", "pprint.pprint", "rich.print", "Console", "rich.console.Console"),
    *("typer.echo", "typer.secho", "click.echo", "click.secho"),
}
STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}

RESULTS = {"summary.json", "report.md"}
WRITES_RESULTS = "experiments.run_files"

MUTABLE_CALLS = {
    *("list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"),
    *("WeakKeyDictionary", "WeakValueDictionary"),
    *("split", "splitlines", "sorted"),
}
MUTATORS = {
    *("append", "extend", "insert", "add", "update", "setdefault"),
    *("pop", "popitem", "remove", "discard", "clear"),
}


def check_names(house: House) -> list[str]:
    """Module names are nouns, not catch-all names."""
    return [f"{shown(name)} says nothing" for name in house if VAGUE & set(name.split("."))]


def check_sizes(house: House) -> list[str]:
    """A file has at most 300 lines, a function at most 50 below its docstring."""
    found = []
    for module in house.values():
        lines = len(module.source.splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{shown(module.name)} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, Function) and (lines := body_lines(node)) > MAX_BODY_LINES:
                found.append(f"{place(module, node.lineno)}: {node.name} has {lines} lines")
    return found


def body_lines(function: Function) -> int:
    """Return how many lines a function has, from the first statement after its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def check_printing(house: House) -> list[str]:
    """Only cli/console.py writes to stdout or stderr."""
    found = []
    for module in house.values():
        if module.name not in MAY_PRINT:
            for node in ast.walk(module.tree):
                if way := way_out(node):
                    found.append(f"{place(module, node.lineno)}: {way}")
    return found


def way_out(node: ast.AST) -> str | None:
    """Return how a node writes to a terminal, None where it does not."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTERS:
        return f"{ast.unparse(node.func)}(…)"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in STREAMS:
        return ast.unparse(node)
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            if full in STREAMS | PRINTERS:
                return full
    return None


def check_results(house: House) -> list[str]:
    """Only experiments/run_files.py writes the summary and the report of a run."""
    found = []
    for module in house.values():
        for node in ast.walk(module.tree):
            if module.name == WRITES_RESULTS or called(node) != "write_text":
                continue
            names = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            found += [f"{place(module, node.lineno)} writes {n}" for n in sorted(names & RESULTS)]
    return found


def check_state(house: House) -> list[str]:
    """No mutable module state: constants are tuples, or dicts in capitals, never modified."""
    found = []
    for module in house.values():
        names = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Global):
                found.append(f"{place(module, node.lineno)}: global {', '.join(node.names)}")
        for node in top_level(module.tree):
            for name, value in assigned(node):
                names.add(name)
                if is_mutable(value) and not (name.isupper() and is_dict(value)):
                    found.append(f"{place(module, node.lineno)}: {name} can be changed")
        for function in (node for node in ast.walk(module.tree) if isinstance(node, Function)):
            for name, line in changes(function):
                if name in names:
                    found.append(f"{place(module, line)}: {function.name} changes {name}")
    return found


def top_level(node: ast.AST) -> Iterator[ast.Assign | ast.AnnAssign]:
    """Yield the assignments that a module makes for itself, those in an `if` or `try` included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assign | ast.AnnAssign):
            yield child
        elif not isinstance(child, Function | ast.ClassDef | ast.expr):
            yield from top_level(child)


def assigned(node: ast.Assign | ast.AnnAssign) -> Iterator[tuple[str, ast.expr]]:
    """Yield the plain names that a statement gives a value, dunder names left out."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        if isinstance(target, ast.Name) and node.value and not target.id.startswith("__"):
            yield target.id, node.value


def called(value: ast.AST) -> str:
    """Return the last name of a call's function, as in `defaultdict` of collections.defaultdict."""
    if not isinstance(value, ast.Call):
        return ""
    function = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return ast.unparse(function).rpartition(".")[2]


def is_dict(value: ast.expr) -> bool:
    """Whether an expression is a plain dict."""
    return isinstance(value, ast.Dict | ast.DictComp) or called(value) == "dict"


def is_mutable(value: ast.expr) -> bool:
    """Whether an expression makes a list, set, dict or another container that can be changed."""
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    return isinstance(value, displays) or called(value) in MUTABLE_CALLS


def changes(function: Function) -> Iterator[tuple[str, int]]:
    """Yield the names not local to a function whose contents it changes, as in NAMES["a"] = 1."""
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    local = arguments | {node.id for node in names if isinstance(node.ctx, ast.Store)}
    for node in ast.walk(function):
        owner: ast.AST | None = None
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            owner = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value if node.func.attr in MUTATORS else None
        if isinstance(owner, ast.Name) and owner.id not in local:
            yield owner.id, node.lineno
