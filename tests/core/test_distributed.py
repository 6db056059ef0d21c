"""Several processes: shares, agreement, and sums to 1e-12 over a real group of two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from errata.core.distributed import Ranks

TOGETHER = """
import sys
from pathlib import Path
import torch, torch.distributed
from errata.statistics.accumulate import BatchPlan, collect
from errata.statistics.measure import token_rows
from errata.core.distributed import Ranks
sys.path.insert(0, sys.argv[1])
from tiny import SENTENCES, tiny_model, tiny_tokenizer

torch.distributed.init_process_group("gloo")
ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
rows = token_rows(tiny_tokenizer(), SENTENCES * 3, 64)
cpu = torch.device("cpu")

def sums(ranks):
    plan = BatchPlan.of(rows, 64, ranks)
    return collect(tiny_model("gpt2"), rows, [1, 2], plan, device=cpu, halves=True, ranks=ranks)

split, alone = sums(ranks), sums(Ranks())
assert split.tokens == alone.tokens and split.half == alone.half
for block in (1, 2):
    for ours, theirs in zip(split.grams[block].sums, alone.grams[block].sums):
        away = float((ours - theirs).abs().max() / theirs.abs().max())
        assert away <= 1e-12, away
assert ranks.agree(ranks.rank) == 0
ranks.wait()
torch.distributed.destroy_process_group()
Path(sys.argv[2], f"rank_{ranks.rank}").touch()
"""


def test_alone_everything_is_ours() -> None:
    alone, tensor = Ranks(), torch.ones(2)
    assert alone.share([1, 2, 3]) == [1, 2, 3]
    alone.add(tensor)
    assert tensor.tolist() == [1, 1]
    assert alone.agree("word") == "word"
    alone.wait()


def test_shares_are_whole_and_even() -> None:
    shares = [Ranks(rank, 3).share(range(10)) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.slow
def test_two_processes_sum_to_one(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), tests, str(tmp_path)],
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("rank_*")) == ["rank_0", "rank_1"]
