"""The commands on smollm2 that the README and docs show print what is shown.

Numbers may differ in the last digits between machines.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from test_documents import HOME, PAGES, commands, needs_package, run, words

pytestmark = pytest.mark.real
NUMBER = re.compile(r"\d+\.\d{3,}")
TOLERANCE = 0.02
"""Largest difference of a probability that is shown."""


def is_shown(line: str, printed: str) -> bool:
    """Whether the text of a line was printed, with numbers that are as good as the same."""
    line = words(line)
    pattern = NUMBER.pattern.join(f"{re.escape(part)}" for part in NUMBER.split(line))
    found = re.search(pattern, words(printed))
    if found is None:
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(found[0]), strict=True)
    return all(abs(float(one) - float(other)) <= TOLERANCE for one, other in pairs)


def test_the_commands_on_smollm2_print_what_is_shown(name: str, tmp_path: Path) -> None:
    if name != "smollm2":
        pytest.skip("the pages show smollm2")
    found = [each for page in PAGES for each in commands(page) if needs_package(each[0])]
    assert commands(HOME / "README.md")[0] in found
    for command, shown in found:
        done = run(command, tmp_path, Path(os.environ["ERRATA_CACHE"]))
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        for line in shown:
            assert is_shown(line, done.stdout), f"$ {command}\nlacks: {line}\n{done.stdout}"
