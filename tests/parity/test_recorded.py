"""We find the numbers that the published implementations found: topic by topic, case by case."""

from __future__ import annotations

import pytest

from parity.check_alphaedit import check_alphaedit
from parity.check_editing import check_memit, check_rome
from parity.check_reading import check_forward, check_moment, check_tokens
from parity.check_trace import check_trace
from parity.recorded import Recorded

Case = tuple[Recorded, str, str]


def test_tokens(recorded: Recorded) -> None:
    check_tokens(recorded)


def test_forward(recorded: Recorded) -> None:
    check_forward(recorded)


def test_second_moment(recorded: Recorded) -> None:
    check_moment(recorded)


def test_rome(rome_case: Case) -> None:
    check_rome(*rome_case)


def test_memit(memit_case: Case) -> None:
    check_memit(*memit_case)


@pytest.mark.parametrize("given", [True, False], ids=["P-given", "P-computed"])
def test_alphaedit(recorded: Recorded, given: bool) -> None:
    check_alphaedit(recorded, given)


def test_trace(recorded: Recorded) -> None:
    if not recorded.has("trace"):
        pytest.skip("no traces are recorded")
    check_trace(recorded)
