"""The package's metadata is true: its name, its version, and the libraries that it depends on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import errata
import house

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MODULES = {
    "huggingface_hub": "huggingface-hub",
    "lm_eval": "lm-eval",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Imported modules whose distribution has another name."""
NOT_IMPORTED = {"protobuf": "transformers reads SentencePiece files with it"}
"""Dependencies that no file of ours imports, and why they are needed all the same."""
WRITTEN = (".py", ".md", ".toml", ".cff", ".txt", ".yml", ".yaml", ".json", "Makefile", "run")
STRANGER = re.compile(r"pip3? install[^\n`;()]*?[\s'\"]errata(?=[\[\s'\"`=<>~]|$)", re.MULTILINE)
"""Commands that would install the project that has the name `errata` on PyPI."""


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", each) for each in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match}


def imported() -> dict[str, bool]:
    """Return each distribution that src imports, and whether any file imports it at its top."""
    found: dict[str, bool] = {}
    modules = house.read_house(ROOT / "src" / "errata")
    for module in modules.values():
        for each in house.imports_of(module, modules):
            name = each.target.partition(".")[0]
            if not each.ours and name not in (*sys.stdlib_module_names, "__future__"):
                found[MODULES.get(name, name)] = found.get(name, False) or each.at_top
    return found


def written_files() -> list[Path]:
    """Return every text file of the tree, builds and environments left out."""
    left_out = ("results", "dist", "build", "node_modules", "venv")
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.name.endswith(WRITTEN)
        and path != Path(__file__)
        and path.is_file()
        and not any(
            part in left_out or (part.startswith(".") and part != ".ci")
            for part in path.relative_to(ROOT).parts[:-1]
        )
    ]


def test_dependencies_are_the_libraries_that_the_source_imports() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = {name for extra, needs in extras.items() if extra != "dev" for name in names(needs)}
    required = names(PROJECT["dependencies"])
    assert not required & optional
    assert set(imported()) == (required | optional) - set(NOT_IMPORTED)
    assert set(NOT_IMPORTED) <= required | optional, "an exception that is no longer one"
    assert {name for name, at_top in imported().items() if at_top} - optional == required


def test_every_extra_is_known_to_the_rule_on_lazy_imports() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = {name for extra, needs in extras.items() if extra != "dev" for name in names(needs)}
    assert {MODULES.get(name, name) for name in house.EXTRAS} == optional - set(NOT_IMPORTED)


def test_every_dependency_is_pinned() -> None:
    pinned = names((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert set().union(*map(names, groups)) <= pinned


def test_nothing_says_to_install_the_other_project_of_this_name() -> None:
    assert STRANGER.search("pip install 'errata[tune]'") and STRANGER.search("pip install errata")
    assert not STRANGER.search("pip install 'errata-lm[tune]'")
    files = written_files()
    assert len(files) > 200
    found = [str(path) for path in files if STRANGER.search(path.read_text("utf-8", "replace"))]
    assert found == []
    assert PROJECT["name"] == "errata-lm"


def test_extras_in_hints_exist() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for extras in re.findall(r"errata-lm\[([\w,]+)\]", path.read_text("utf-8")):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), path


def test_there_is_one_version() -> None:
    source = ast.parse((ROOT / "src" / "errata" / "core" / "version.py").read_text("utf-8"))
    assert f"__version__ = {errata.__version__!r}" in map(ast.unparse, source.body)
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert f"version: {errata.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_command_line_shows_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "errata", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"errata {errata.__version__}\n"
