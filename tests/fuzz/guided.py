"""Fuzzing led by coverage: `python tests/fuzz/guided.py KIND [-max_total_time=60 …]`.

Needs atheris (`pip install atheris`; Linux). Branches of errata are counted, so that an input
which reaches a new one is kept and spoilt further; half of the changes are aimed at values
(`mutations`), half are libFuzzer's own. The first finding stops it: the input is written to
`crash-…`, belongs into `corpus/KIND/` and gets a test that is named after the symptom.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

with atheris.instrument_imports(include=["errata"]):
    from fuzz.strangers import KINDS, Strangers

from fuzz.mutations import spoilt


class Finding(Exception):
    """A file of a stranger did what it must not."""


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        sys.exit(f"usage: guided.py KIND [libFuzzer's flags]; kinds: {', '.join(KINDS)}")
    kind, flags = sys.argv[1], sys.argv[2:]
    folder = Path(tempfile.mkdtemp())
    user = Strangers(folder)
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, data in enumerate(user.seeds(kind)):
        (seeds / str(number)).write_bytes(data)

    def meet(data: bytes) -> None:
        if found := user.meet(kind, data):
            raise Finding(found)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return spoilt(data, Random(seed))[:most]
        return atheris.Mutate(data, most)

    limits = ["-max_len=100000", "-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *flags, str(seeds)], meet, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
