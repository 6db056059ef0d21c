"""`errata`: the verbs, and how errors become words and exit codes.

Exit codes: 0 done, 1 something that the user can mend, 2 a wrong command line, 130 Ctrl-C.
"""

from __future__ import annotations

import sys

import typer

from errata import console
from errata.cli import chat, edit, env, export, lens, ls, run, stats, summarize, sweep_blocks, trace
from errata.cli import eval as evaluation
from errata.errors import ErrataError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="errata",
    help="Edit the facts that a language model holds, and see what changed.",
    epilog='Example: errata edit demo "The {Eiffel Tower} is in the city of" Rome',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.command()(edit.edit)
app.command("eval")(evaluation.evaluate)
app.command()(run.run)
app.command()(summarize.summarize)
app.command()(stats.stats)
app.command()(trace.trace)
app.command()(lens.lens)
app.command("sweep-blocks")(sweep_blocks.sweep_blocks)
app.command()(chat.chat)
app.command()(export.export)
app.command("ls")(ls.list_things)
app.command()(env.env)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except ErrataError as error:
        console.error(error)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        console.warning("stopped; what was saved before is whole")
        sys.exit(INTERRUPTED)
