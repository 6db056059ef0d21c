"""`errata`: the verbs, and how exceptions become messages and exit codes (docs/errors.md)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from errata.cli import (
    calibrate,
    chat,
    console,
    edit,
    env,
    export,
    lens,
    ls,
    ppl,
    run,
    stats,
    summarize,
    survival,
    sweep_blocks,
    tasks,
    trace,
    tune,
)
from errata.cli import eval as evaluation
from errata.core.errors import ErrataError
from errata.core.files import reason
from errata.core.version import __version__

USER_ERROR = 1
"""Exit code: an error that the user can correct; a wrong command line is 2."""
BUG = 70
"""Exit code: a bug in errata."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="errata",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


@app.callback(
    invoke_without_command=True,
    no_args_is_help=True,
    epilog='Example: errata edit demo "The {Eiffel Tower} is in the city of" Rome',
)
def top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Edit facts in language models, and measure what changed."""
    if version:
        console.text(f"errata {__version__}")
        raise typer.Exit


app.command()(edit.edit)
app.command("eval")(evaluation.evaluate)
app.command()(run.run)
app.command()(summarize.summarize)
app.command()(stats.stats)
app.command()(trace.trace)
app.command()(lens.lens)
app.command("sweep-blocks")(sweep_blocks.sweep_blocks)
app.command()(calibrate.calibrate)
app.command()(tune.tune)
app.command()(survival.survival)
app.command()(tasks.tasks)
app.command()(ppl.ppl)
app.command()(chat.chat)
app.command()(export.export)
app.command("ls")(ls.list_things)
app.command()(env.env)


def main() -> None:
    """Run the command line; every exception ends as a message and an exit code."""
    console.set_up()
    try:
        app(prog_name="errata")
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        console.warning("stopped; everything saved before is intact")
        sys.exit(INTERRUPTED)
    except Exception as error:
        problem = error if isinstance(error, ErrataError) else _user_error(error)
        if problem is None:
            console.bug(error)
            sys.exit(BUG)
        console.error(problem)
        sys.exit(USER_ERROR)


def _user_error(error: Exception) -> ErrataError | None:
    """Return the error to show for lack of memory or a failed file operation, None for a bug."""
    if (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    ):
        return ErrataError(
            f"there is not enough memory: {reason(error).splitlines()[0]}",
            "everything saved before is intact; the same command resumes from there",
            "lower --requests-at-once or --batch-size, or load the model in --dtype bfloat16",
        )
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        return ErrataError(
            f"{named}{reason(error)}", "check the path, its permissions and the free disk space"
        )
    return None
