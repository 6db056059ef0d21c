"""The only module that prints.

Results go to stdout: a verb line, `*` facts, a table, a `Next:` line, or with `--json` one
object and nothing else. Progress and errors go to stderr. Without a terminal there is no
colour and no bar; `NO_COLOR` is honoured.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box, progress
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from errata.core.errors import ErrataError, command_hints
from errata.core.progress import Progress

PLAIN_WIDTH = 100
"""Width in columns if output goes to a file or pipe."""
LABEL_WIDTH = 24
LONGEST_WORD = 32
"""Length up to which tables do not break a word; paths are never broken."""
GAP = 3
"""Columns between two columns of a table; both edges together are one narrower."""
SHADES = " ·░▒▓█"
"""Shades from the lowest to the highest value, without colours."""


SHOWN = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Control characters, which could steer a terminal, and what is printed instead."""


def set_up() -> None:
    """Print characters that the terminal cannot show as escapes instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def _plain(text: str, style: str = "") -> Text:
    return Text(text.translate(SHOWN), style=style)


def verb(text: str) -> None:
    """Print the line that names the command."""
    _console().print(_plain(text, style="bold"))


def fact(text: str) -> None:
    """Print one fact, as a bullet."""
    _console().print(_plain(f"* {text}"))


def warning(text: str) -> None:
    """Print a warning to stderr."""
    _console(stderr=True).print(_plain(f"warning: {text}", style="yellow"))


def progress_line(text: str) -> None:
    """Print a line about progress to stderr."""
    _console(stderr=True).print(_plain(text, style="dim"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; long cells are folded between words, never within one."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    console = _console()
    widths = _widths(columns, rows, console.width)
    for column, width in zip(columns, widths, strict=True):
        shown.add_column(_plain(column), overflow="fold", width=width)
    for row in rows:
        shown.add_row(*(_plain(cell) for cell in row))
    console.width = max(console.width, sum(widths) + GAP * len(widths) - 1)
    console.soft_wrap = False
    console.print(shown)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the widths of the columns: the widest shrink first, none below its longest word."""
    widths, floors = [], []
    for index, column in enumerate(columns):
        cells = [row[index].translate(SHOWN) for row in rows]
        # A path that can be copied is worth more than even columns.
        whole = bool(cells) and all("/" in cell and " " not in cell for cell in cells)
        longest = room // 2 if whole else LONGEST_WORD
        parts = [column, *cells]
        words = [cell_len(word) for part in parts for word in part.split()]
        widths.append(min(room, max(cell_len(line) for part in parts for line in _lines(part))))
        floors.append(max((word for word in words if word <= longest), default=1))
    over = sum(widths) + GAP * len(widths) - 1 - room
    while over > 0 and (wide := [i for i, width in enumerate(widths) if width > floors[i]]):
        widths[max(wide, key=lambda i: widths[i])] -= 1
        over -= 1
    return widths


def _lines(text: str) -> list[str]:
    return text.splitlines() or [""]


def heat_map(
    title: str,
    labels: Sequence[str],
    values: Sequence[Sequence[float]],
    low: float,
    high: float,
    words: Callable[[float], str] = "{:.2f}".format,
) -> None:
    """Show a matrix as shades between `low` and `high`, with the maximum of each row.

    In colour where the terminal supports it, otherwise by characters; columns are numbered from 0.
    `words` formats a number.
    """
    console = _console()
    colour = console.color_system is not None
    count = len(values[0])
    side = min(LABEL_WIDTH, max(cell_len(label) for label in labels))
    wide = 2 if side + 2 * count + 8 <= console.width else 1
    console.print(Text(title, style="bold"))
    marks = "".join(str(column).ljust(5 * wide) for column in range(0, count, 5))
    console.print(Text(" " * (side + 1) + marks.rstrip(), style="dim"))
    for label, row in zip(labels, values, strict=True):
        line = Text(" " * (side - cell_len(set_cell_size(label, side).rstrip())))
        line.append(set_cell_size(label, side).rstrip() + " ")
        for value in row:
            share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
            if colour:
                line.append(" " * wide, style=f"on {_shade(share)}")
            else:
                line.append(SHADES[round(share * (len(SHADES) - 1))] * wide)
        line.append(f"  {words(max(row))}")
        console.print(line)


def _shade(share: float) -> str:
    """Return a colour between a very dark and a bright one."""
    ends = zip((38, 34, 51), (255, 196, 84), strict=True)
    return "rgb({},{},{})".format(*(round(a + share * (b - a)) for a, b in ends))


def text(content: str) -> None:
    """Print text unchanged."""
    _console().print(_plain(content))


def next_step(*commands: str) -> None:
    """Print commands that the user may want to run next."""
    console = _console()
    for index, command in enumerate(commands):
        console.print(_plain(("Next: " if index == 0 else "      ") + command))


def as_json(result: Any) -> None:
    """Print one JSON object, which is the only output on stdout."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


def error(problem: ErrataError) -> None:
    """Print an error and its hints to stderr."""
    console = _console(stderr=True)
    console.print(
        Text("error: ", style="bold red").append(_plain(problem.message, style="not bold"))
    )
    for hint in command_hints(problem):
        console.print(Text("hint: ", style="cyan").append(_plain(hint)))


def bug(problem: BaseException) -> None:
    """Print the traceback of a bug to stderr, and how to report it."""
    _console(stderr=True).print(_plain("".join(traceback.format_exception(problem))))
    error(
        ErrataError(
            f"this is a bug in errata: {type(problem).__name__}",
            "please report it with the lines above, the command, and the output of `errata env`",
        )
    )


class _Rate(ProgressColumn):
    """The rate, in units per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty while it is unknown."""
        if task.speed is None:
            return Text("")
        number = f"{task.speed:,.0f}" if task.speed >= 10 else f"{task.speed:.2g}"
        return Text(f"{number} {task.fields['unit']}".rstrip() + "/s")


@contextmanager
def bar(title: str, unit: str = "") -> Iterator[Progress]:
    """Show a progress bar on stderr, with rate and time left; call it with (done, total).

    Without a terminal nothing is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
    console = _console(stderr=True)
    with progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(title, total=None, unit=unit)
        yield lambda done, total: shown.update(task, completed=done, total=total)
