"""Files of killed measurements in the folder of a store.

A pass writes checkpoints named `.<pass>-<blocks>.<rank>of<world>.partial` and the moments
themselves, each by way of a temporary `.part` file beside it. Every pass has a lock of its own, and
several passes may write to one folder at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from errata.core.files import remove_parts

STALE_DAYS = 14
"""Days without a write after which a file of another measurement counts as abandoned."""


def remove_unfinished(folder: Path, pass_name: str, moments: Iterable[str]) -> None:
    """Remove the temporary files of a pass's checkpoints and of its `moments`, given by file name.

    The caller holds the pass's lock and has not written yet, so the process that wrote them is
    dead. Those of other passes remain: their writers may be running.
    """
    remove_parts(folder, (f".{pass_name}-", *moments))


def remove_abandoned(folder: Path, pass_name: str, blocks: Iterable[int]) -> None:
    """Remove what can no longer be resumed, once the moments of a pass's `blocks` are stored.

    Of this pass, whose lock the caller holds: checkpoints of these blocks, which are not measured
    again in the same combination. Of other passes: checkpoints and temporary files that were not
    written to for `STALE_DAYS`.
    """
    stored, prefix = {str(block) for block in blocks}, f".{pass_name}-"
    for path in (*folder.glob(".*.partial"), *folder.glob(".*.part")):
        with suppress(OSError):
            if path.name.startswith(prefix):
                listed = path.name.removeprefix(prefix).split(".")[0].split("-")
                abandoned = bool(stored & set(listed))
            else:
                abandoned = time.time() - path.stat().st_mtime > STALE_DAYS * 86400
            if abandoned:
                path.unlink()
