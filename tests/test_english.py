"""Documentation, help and source avoid phrases that paraphrase a term or read like a riddle.

`RIDDLES` lists phrases that used to recur, with what to write instead. They are errors in the
documentation, in `--help` and in the rooms that have been revised; `NOT_REVISED` lists the others,
and shrinks. Words alone are not forbidden: "kept" or "told" are fine where they are meant.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from errata.cli.main import app

HOME = Path(__file__).parents[1]
COMMANDS = get_command(app)
assert isinstance(COMMANDS, TyperGroup)
VERBS = tuple(COMMANDS.commands)

# What not to write → what to write instead.
RIDDLES: tuple[tuple[str, str], ...] = (
    (r"go(es|ing)? on (where|from where) (it|they) (was|were|stopped)", "resumes"),
    (r"(one|run|that) (that|which) (was|is) stopped goes on", "interrupted runs resume"),
    (r"what stood there", "the unedited hidden state, h₀"),
    (r"(is|are|what is) only told", "warnings"),
    (r"what the (matrix|weight|model) (already )?serves", "the layer's inputs; existing knowledge"),
    (r"bring(s|ing)? (a |the |the corrupted )?answers? back", "restores the answer"),
    (r"gives? (most of )?(the answer|it) back", "recovers"),
    (r"wants? a second moment", "needs the second moment"),
    (r"turns of one talk", "turns of one conversation"),
    (r"rows on their way up", "hidden states, layer by layer"),
    (r"lengths of what", "a multiple of its norm"),
    (r"\bis held against\b", "is compared with"),
    (r"\bput aside\b|\bset aside for\b", "ignored; held out"),
    (r"as people write it", "with the subject in braces"),
    (r"what speaks for it", "the evidence"),
    (r"\bcut short\b", "truncated"),
    (r"\bmend (them|it)\b", "correct, fix"),
    (r"to be had\b", "available"),
    (r"(is|are) met with words", "gives an error message"),
    (r"says? by itself", "the greedy prediction"),
    (r"pip install '?errata\[", "pip install 'errata-lm[…]'"),
)
PATTERN = re.compile("|".join(f"({phrase})" for phrase, _ in RIDDLES), re.IGNORECASE)

NOT_REVISED: tuple[str, ...] = ()
"""Parts of src/errata that still contain such phrases. Remove a line once its part is revised."""
VERBS_NOT_REVISED: tuple[str, ...] = ()
"""Verbs whose `--help` still contains such phrases. Remove a verb once its help is revised."""


def riddles(text: str) -> list[str]:
    """Return the phrases of a text that `RIDDLES` lists, across line breaks."""
    return [found.group(0) for found in PATTERN.finditer(" ".join(text.split()))]


def revised_source() -> list[Path]:
    """Return the source files of src/errata that are outside `NOT_REVISED`, and tools/."""
    source = HOME / "src" / "errata"
    skipped = tuple(source / part for part in NOT_REVISED)
    files = [
        path
        for path in sorted(source.rglob("*.py"))
        if not any(path == part or part in path.parents for part in skipped)
    ]
    return files + sorted((HOME / "tools").rglob("*.py"))


def pages() -> list[Path]:
    """Return the pages that users and contributors read."""
    folders = (HOME / name for name in ("docs", "examples", "benchmarks"))
    found = [page for folder in folders for page in folder.rglob("*.md")]
    written = [page for page in found if page.name != "report.md"]  # reports are generated
    tops = [HOME / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return [*tops, *sorted(written), HOME / "src/errata/assets/demo/model/README.md"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(HOME)))
def test_pages_are_in_plain_english(page: Path) -> None:
    assert riddles(page.read_text("utf-8")) == []


def test_revised_source_is_in_plain_english() -> None:
    found = {
        str(path.relative_to(HOME)): phrases
        for path in revised_source()
        if (phrases := riddles(path.read_text("utf-8")))
    }
    assert found == {}


def test_every_part_that_is_not_revised_exists() -> None:
    missing = [part for part in NOT_REVISED if not (HOME / "src" / "errata" / part).exists()]
    assert missing == []


@pytest.mark.parametrize("verb", sorted(set(VERBS) - set(VERBS_NOT_REVISED)))
def test_help_is_in_plain_english(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0
    assert riddles(shown.output) == []


def test_every_verb_that_is_not_revised_exists() -> None:
    assert set(VERBS_NOT_REVISED) <= set(VERBS)


@pytest.mark.parametrize(
    "text",
    [
        "A run that was stopped goes on where it was.",
        "how much of what the matrix\n    already serves",
        "the states that bring the\ncorrupted answer back",
        "pip install 'err" + "ata[tune]'",
    ],
)
def test_a_riddle_is_found_across_lines(text: str) -> None:
    assert riddles(text)


@pytest.mark.parametrize(
    "text",
    [
        "Interrupted runs resume.",
        "A patch is kept as one file; the warning is told apart from an error.",
        "pip install 'errata-lm[tune]'",
        "Recommend blocks and amend the recipe.",
    ],
)
def test_ordinary_words_are_not_riddles(text: str) -> None:
    assert not riddles(text)
