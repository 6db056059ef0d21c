"""Thousands of edits of the demo model in one go: time, memory and the size of what is kept.

    1,000     facts of the demo's world, each with another object of its relation, one batch of
              MEMIT, scored before and after on its prompt, one paraphrase and one neighbour
    10,000    more facts than the world has: its sentence forms about subjects with made-up numbers
              behind their names. Nobody knows these, so only what it costs means anything.

A run is what `errata edit demo --requests … --method memit` does, in a process of its own, so that
its peak memory is its own. There is no plain side; `end_to_end.py` compares.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo_model.world import Fact, build_world


def records(count: int) -> list[dict[str, Any]]:
    """Return so many cases; the first are facts of the world, one a subject while they last."""
    random_ = random.Random(count)
    world = build_world()
    facts = random_.sample(world.facts, len(world.facts))
    once: dict[str, Fact] = {}
    for fact in facts:
        once.setdefault(fact.subject, fact)
    ordered = [*once.values(), *(fact for fact in facts if once[fact.subject] is not fact)]
    found = []
    for number in range(count):
        fact = ordered[number % len(ordered)]
        again = number // len(ordered)
        subject = f"{fact.subject} {again}" if again else fact.subject
        pool = [other for other in world.objects[fact.relation.id] if other != fact.answer]
        first, second = random_.sample(fact.statements, 2)
        neighbour = random_.choice([f for f in facts if f.relation is fact.relation])
        found.append(
            {
                "prompt": first.prompt,
                "subject": subject,
                "target": random_.choice(pool),
                "target_true": fact.answer,
                "paraphrases": [second.prompt.replace("{}", subject)],
                "neighbours": [first.prompt.replace("{}", neighbour.subject)],
                "neighbour_answers": [neighbour.answer],
            }
        )
    return found


def run(count: int) -> dict[str, Any]:
    """Edit so many facts in one batch, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps(record) for record in records(count)]
        (folder / "cases.jsonl").write_text("\n".join(lines), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = ["edit", "demo", "--dataset", str(folder / "cases.jsonl"), "--method", "memit"]
        done = subprocess.run(
            [sys.executable, "-m", "errata", *arguments, "--results", str(folder), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = json.loads(done.stdout)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "seconds": used,
            "peak_bytes": after.ru_maxrss * 1024,
            "patch_bytes": Path(told["patches"][0]).stat().st_size,
            "efficacy": told["summary"]["efficacy"]["value"],
            "paraphrase": told["summary"]["paraphrase"]["value"],
        }


def main() -> None:
    """Run the sizes that the command line names, 1000 and 10000 by default; --json for machines."""
    sizes = [int(word) for word in sys.argv[1:] if word.isdecimal()] or [1000, 10_000]
    found = {f"demo memit n={count}": run(count) for count in sizes}
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name, *(f"  {key:15} {value:.4g}" for key, value in figures.items()), sep="\n")


if __name__ == "__main__":
    main()
