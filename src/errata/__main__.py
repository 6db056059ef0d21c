"""`python -m errata` is `errata`; `torchrun -m errata stats …` starts it in several processes.

Ctrl-C is told in words from the first moment, while the command line is still being loaded.
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
