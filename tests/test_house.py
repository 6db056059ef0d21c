"""The house stands as it was drawn, and every rule that says so fails when it is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import house
import house_files

SOURCE = Path(__file__).resolve().parents[1] / "src" / "errata"

Check = Callable[[house.House], list[str]]
CHECKS: tuple[Check, ...] = (
    house.check_rooms,
    house.check_directions,
    house.check_circles,
    house.check_methods,
    house.check_protocol,
    house.check_entrances,
    house.check_light,
    house.check_extras,
    house_files.check_names,
    house_files.check_sizes,
    house_files.check_printing,
    house_files.check_results,
    house_files.check_state,
)

# Each row: the check, a small package that breaks its rule, what the message must name.
BROKEN: tuple[tuple[Check, dict[str, str], str], ...] = (
    (house.check_rooms, {"engine": ""}, "errata.engine"),
    (house.check_rooms, {"engine.__init__": "", "engine.keys": ""}, "errata.engine.keys"),
    (house.check_rooms, {"models": ""}, "errata.models lies in no room"),
    (
        house.check_directions,
        {"models.tokens": "from errata.patches.patch import load", "patches.patch": ""},
        "errata.models.tokens:1 imports upwards: errata.patches.patch",
    ),
    (
        house.check_directions,
        {"models.tokens": "from ..patches.patch import load", "patches.patch": ""},
        "errata.patches.patch",
    ),
    (
        house.check_directions,
        {"models.tokens": "from errata import patches", "patches.__init__": ""},
        "errata.patches",
    ),
    (
        house.check_directions,
        {"data.case": "from errata.models import tokens", "models.tokens": ""},
        "errata.models.tokens",
    ),
    (house.check_directions, {"models.tokens": "import errata", "__init__": ""}, "tokens:1"),
    (
        house.check_directions,
        {"models.tokens": "def f():\n    import errata.patches", "patches.__init__": ""},
        "tokens:2",
    ),
    (
        house.check_directions,
        {
            "models.tokens": "if TYPE_CHECKING:\n    import errata.patches",
            "patches.__init__": "",
        },
        "errata.models.tokens:2",
    ),
    (house.check_circles, {"keys": "import errata.patch", "patch": "import errata.keys"}, "keys"),
    (
        house.check_circles,
        {"keys": "import errata.patch", "patch": "def f():\n    from .keys import k"},
        "errata.patch",
    ),
    (
        house.check_circles,
        {"data.__init__": "from .zsre import read", "data.zsre": "from . import Case"},
        "errata.data.zsre",
    ),
    (
        house.check_methods,
        {
            "methods.__init__": "from . import memit, rome",
            "methods.rome": "",
            "methods.memit": "from . import rome",
        },
        "errata.methods.rome",
    ),
    (
        house.check_methods,
        {
            "methods.__init__": "from errata.methods.rome import Rome",
            "methods.rome": "from errata.methods import METHODS",
        },
        "errata.methods",
    ),
    (
        house.check_methods,
        {
            "methods.__init__": "from errata.methods import rome",
            "methods.rome": "",
            "methods.closed_form.driver": "from errata.methods import rome",
        },
        "errata.methods.rome",
    ),
    (
        house.check_protocol,
        {
            "methods.closed_form.keys": "",
            "experiments.runs": "def f():\n    from errata.methods.closed_form.keys import Keys",
        },
        "errata.experiments.runs:2 imports errata.methods.closed_form.keys",
    ),
    (
        house.check_protocol,
        {"methods.__init__": "", "cli.edit": "from errata.methods import Method, ClosedForm"},
        "errata.cli.edit:1 names ClosedForm",
    ),
    (
        house.check_protocol,
        {"methods.__init__": "", "cli.edit": "import errata.methods as m\nx = m.ClosedForm"},
        "errata.cli.edit:2 names ClosedForm",
    ),
    (
        house.check_entrances,
        {"data.rows": "from errata.cli.main import main", "cli.__init__": "", "cli.main": ""},
        "errata.cli.main",
    ),
    (house.check_light, {"core.errors": "import torch"}, "errata.core.errors → torch"),
    (house.check_light, {"core.errors": "from safetensors.torch import save_file"}, "safetensors"),
    (house.check_light, {"cli.main": "try:\n    from transformers import x\nfinally: ..."}, "main"),
    (
        house.check_light,
        {
            "methods.__init__": "from errata.methods.rome import Rome",
            "methods.rome": "from errata.models.keys import k",
            "models.keys": "import torch",
        },
        "errata.methods.rome → errata.models.keys → torch",
    ),
    (
        house.check_light,
        {"__init__": "import torch.nn", "core.text": "import errata.errors", "errors": ""},
        "errata → torch",
    ),
    (
        house.check_light,
        {"cli.main": "import errata.data.zsre", "data.__init__": "import torch", "data.zsre": ""},
        "errata.cli.main → errata.data → torch",
    ),
    (house.check_extras, {"tune": "from peft import LoraConfig"}, "errata.tune:1"),
    (house.check_extras, {"report": "class A:\n    import matplotlib.pyplot as plt"}, "matplotlib"),
    (house_files.check_names, {"utils": ""}, "errata.utils"),
    (house_files.check_names, {"data.helpers": ""}, "errata.data.helpers"),
    (house_files.check_sizes, {"keys": "x = 1\n" * 301}, "301 lines"),
    (house_files.check_sizes, {"keys": "def f():\n" + "    x = 1\n" * 51}, "f has 51 lines"),
    (
        house_files.check_sizes,
        {"keys": "class A:\n    async def f():\n        '''Doc.'''\n" + "        x = 1\n" * 51},
        "f has 51 lines",
    ),
    (house_files.check_printing, {"keys": "def f():\n    print('here')"}, "errata.keys:2"),
    (house_files.check_printing, {"keys": "import sys\nsys.stderr.write('x')"}, "sys.stderr"),
    (house_files.check_printing, {"keys": "from sys import stdout"}, "sys.stdout"),
    (house_files.check_printing, {"cli.main": "typer.echo('x')"}, "typer.echo"),
    (house_files.check_printing, {"cli.main": "from rich import print as p"}, "rich.print"),
    (house_files.check_printing, {"cli.main": "from rich.console import Console"}, "Console"),
    (
        house_files.check_results,
        {"experiments.eval": "write_text(folder / 'report.md', text)"},
        "errata.experiments.eval:1 writes report.md",
    ),
    (
        house_files.check_results,
        {"experiments.eval": "path.joinpath('summary.json').write_text('{}')"},
        "eval:1 writes summary.json",
    ),
    (house_files.check_state, {"keys": "cache = {}"}, "cache can be changed"),
    (house_files.check_state, {"keys": "_seen: set[str] = set()"}, "_seen can be changed"),
    (house_files.check_state, {"keys": "NAMES = ['a']"}, "NAMES can be changed"),
    (house_files.check_state, {"keys": "A = collections.defaultdict(list)"}, "A can be changed"),
    (house_files.check_state, {"keys": "if x:\n    cache = list[str]()"}, "cache can be changed"),
    (house_files.check_state, {"keys": "WORDS = 'a b'.split()"}, "WORDS can be changed"),
    (house_files.check_state, {"keys": "n = 0\ndef f():\n    global n\n    n = 1"}, "global n"),
    (house_files.check_state, {"keys": "A = {}\ndef f(k):\n    A[k] = 1"}, "f changes A"),
    (house_files.check_state, {"keys": "A = {}\ndef f(k):\n    A.pop(k)"}, "f changes A"),
)

# What a rule must let pass: an honest package that comes close to breaking each of them.
HONEST = {
    "__init__": "def __getattr__(n):\n    from errata.models.loading import load\n    return load",
    "__main__": "from errata.cli.main import main",
    "core.errors": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    "data.request": "from errata.core.errors import ErrataError\ndef f():\n    import torch",
    "data.__init__": "from .zsre import read\nDATASETS = {'zsre': read}",
    "data.zsre": "def read():\n    DATASETS = {}\n    DATASETS['a'] = 1",
    "models.__init__": "",
    "models.loading": "import torch\nfrom ..core.errors import Errata\nclass A:\n    b = list(())",
    "patches.patch": (
        "import torch\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import errata.patches.card"
    ),
    "patches.card": "from errata.patches.patch import k\n__all__ = ['Card']",
    "methods.__init__": "from errata.methods.rome import Rome\nMETHODS = {'rome': Rome}",
    "methods.closed_form.driver": "def solve():\n    import torch\n    from errata.models import k",
    "methods.rome": "from errata.methods.closed_form.driver import solve",
    "tuning.train": "def tune():\n    from peft import LoraConfig",
    "cli.__init__": "",
    "cli.console": "import sys\nfrom rich.console import Console\nprint('x', file=sys.stderr)",
    "cli.main": "from errata.cli import console\ndef main():\n    console.print('x')",
    "metrics.scores": "def f():\n    '''" + "Doc.\n" * 60 + "    '''\n" + "    x = 1\n" * 50,
    "metrics.likelihood": "x = 1\n" * 300,
    "experiments.run_files": "write_text(folder / 'summary.json', text)",
    "experiments.eval": "found = (folder / 'summary.json').read_text()",
}


def build(root: Path, sources: dict[str, str]) -> house.House:
    """Write a package of these modules and read it back."""
    for name, source in sources.items():
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return house.read_house(root)


@pytest.fixture(scope="module")
def standing() -> house.House:
    return house.read_house(SOURCE)


def test_the_source_is_found(standing: house.House) -> None:
    assert {"core.errors", "data.request"} <= standing.keys()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_keeps_the_rule(check: Check, standing: house.House) -> None:
    found = check(standing)
    assert not found, f"{check.__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_rule_lets_an_honest_house_pass(check: Check, tmp_path: Path) -> None:
    assert check(build(tmp_path, HONEST)) == []


@pytest.mark.parametrize(
    ("check", "sources", "message"), BROKEN, ids=[f"{row[0].__name__}-{row[2]}" for row in BROKEN]
)
def test_the_rule_sees_a_broken_house(
    check: Check, sources: dict[str, str], message: str, tmp_path: Path
) -> None:
    found = check(build(tmp_path, sources))
    assert any(message in line for line in found), found


def test_every_rule_is_broken_once() -> None:
    assert {row[0] for row in BROKEN} == set(CHECKS)


def test_every_check_is_listed() -> None:
    written = [vars(room)[name] for room in (house, house_files) for name in vars(room)]
    checks = {each for each in written if getattr(each, "__name__", "").startswith("check_")}
    assert checks == set(CHECKS)
