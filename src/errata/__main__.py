"""`python -m errata` is `errata`; `torchrun -m errata stats …` starts it in several processes.

Ctrl-C ends without a traceback even while the command line is still being imported.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from errata.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
