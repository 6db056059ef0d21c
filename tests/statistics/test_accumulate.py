"""One pass: each token once through each block, stopped, resumed and split without a difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.core.distributed import Ranks
from errata.core.errors import ErrataError
from errata.models.families import family_of
from errata.statistics.accumulate import BatchPlan, Checkpoint, Rows, Sums, collect, sample_keys
from errata.statistics.measure import measure, token_rows
from laws.bench import bits, closeness
from tiny import BLOCKS, SENTENCES, tiny_model, tiny_tokenizer

ROWS = [
    row[: 24 - 3 * (i % 4)] for i, row in enumerate(token_rows(tiny_tokenizer(), SENTENCES * 2, 24))
]
CPU = torch.device("cpu")
BUDGET = 50
"""Two rows at once, some of them padded."""


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def passed(
    partial: Checkpoint | None = None,
    *,
    rows: Rows = ROWS,
    stop_after: int | None = None,
    halves: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008
    blocks: Sequence[int] = (1, 2),
    budget: int = BUDGET,
) -> Sums:
    """Make one pass; it is broken off after so many batches."""
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        told += 1
        if told == stop_after:
            raise Interrupted

    plan = BatchPlan.of(rows, budget, Ranks(ranks.rank, ranks.world))
    alone = Ranks() if ranks.world > 1 else ranks
    return collect(
        tiny_model("gpt2"),
        rows,
        blocks,
        plan,
        device=CPU,
        halves=halves,
        partial=partial,
        ranks=alone,
        progress=progress,
    )


def state(sums: Sums) -> list[bytes]:
    held = [bits(panel) for gram in sums.grams.values() for panel in gram.sums]
    return held + [bits(panel) for panels in sums.halves.values() for panel in panels]


def always(path: Path, lines: list[str] | None = None) -> Checkpoint:
    """Keep the sums at every border."""
    say = (lambda line: None) if lines is None else lines.append
    return Checkpoint(path / "sums.partial", every=0.0, clock=lambda: 0.0, say=say)


def test_rows_are_batched_once_each_by_length() -> None:
    plan = BatchPlan.of(ROWS, BUDGET)
    assert sorted(i for batch in plan.batches for i in batch) == list(range(len(ROWS)))
    assert all(i % 2 == 0 for batch in plan.batches[: plan.first] for i in batch)
    assert all(i % 2 == 1 for batch in plan.batches[plan.first :] for i in batch)
    for batch in plan.batches:
        assert len(batch) == 1 or len(batch) * max(len(ROWS[i]) for i in batch) <= BUDGET
    assert plan == BatchPlan.of(list(ROWS), BUDGET) != BatchPlan.of(ROWS, 2 * BUDGET)


def test_a_plan_is_told_by_everything_that_decides_it() -> None:
    plan = BatchPlan.of(ROWS, BUDGET)
    other = [(*ROWS[0][:-1], 7), *ROWS[1:]]
    digests = {
        plan.digest(ROWS, blocks=[1]),
        plan.digest(ROWS, blocks=[2]),
        plan.digest(other, blocks=[1]),
        BatchPlan.of(ROWS, 2 * BUDGET).digest(ROWS, blocks=[1]),
        BatchPlan.of(ROWS, BUDGET, Ranks(0, 2)).digest(ROWS, blocks=[1]),
    }
    assert len(digests) == 5
    assert plan.digest(ROWS, blocks=[1]) in digests


@pytest.mark.parametrize("stop", range(1, len(BatchPlan.of(ROWS, BUDGET).batches)))
def test_a_pass_that_was_broken_off_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(Interrupted):
        passed(always(tmp_path), stop_after=stop)
    assert state(passed(always(tmp_path, lines))) == state(passed())
    # A batch that was told of but not yet kept is done again.
    assert lines == ([f"resuming an interrupted measurement after {stop - 1} batches"] * (stop > 1))


def test_what_is_kept_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        passed(always(tmp_path), stop_after=4)
    ran = counted(monkeypatch)
    passed(always(tmp_path))
    assert len(ran) == len(BatchPlan.of(ROWS, BUDGET).batches) - 3


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch that is run."""
    import errata.statistics.accumulate

    ran: list[int] = []
    real = errata.statistics.accumulate.record

    def record(model: Any, ids: Any, *args: Any, **more: Any) -> Any:
        ran.append(len(ids))
        return real(model, ids, *args, **more)

    monkeypatch.setattr(errata.statistics.accumulate, "record", record)
    return ran


@pytest.mark.parametrize(
    "change",
    [{"rows": ROWS[:-1]}, {"budget": 80}, {"halves": False}, {"blocks": (1, 3)}],
    ids=["rows", "budget", "halves", "blocks"],
)
def test_sums_of_another_plan_are_not_taken(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        passed(always(tmp_path), stop_after=4)
    assert state(passed(always(tmp_path), **change)) == state(passed(**change))


@pytest.mark.parametrize("keep", [0, 9, 300, -1])
def test_a_torn_file_of_sums_counts_as_none(keep: int, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        passed(always(tmp_path), stop_after=4)
    path = tmp_path / "sums.partial"
    path.write_bytes(path.read_bytes()[:keep])
    assert state(passed(always(tmp_path))) == state(passed())


def test_sums_are_kept_by_the_clock_and_seldom_where_it_takes_long(tmp_path: Path) -> None:
    now, tensors = [0.0], {"a": torch.zeros(2)}
    partial = Checkpoint(tmp_path / "sums", every=30.0, clock=lambda: now[0])
    partial.load("plan", tensors)
    written = []
    for now[0] in (10.0, 29.0, 31.0, 40.0, 62.0):
        partial.save("plan", 1, tensors)
        written.append(partial.path.exists())
        partial.remove()
    assert written == [False, False, True, False, True]
    ticks = iter([0.0, 30.0, 40.0, 239.0, 241.0, 242.0])
    slow = Checkpoint(tmp_path / "sums", every=30.0, clock=lambda: next(ticks))
    slow.load("plan", tensors)
    slow.save("plan", 1, tensors)  # takes from 30 to 40
    slow.remove()
    slow.save("plan", 2, tensors)  # 239: not yet
    assert not slow.path.exists()
    slow.save("plan", 3, tensors)
    assert slow.path.exists()


@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_shares_of_several_ranks_add_up_to_one_process(world: int) -> None:
    whole, parts = passed(), [passed(ranks=Ranks(rank, world)) for rank in range(world)]
    plans = [BatchPlan.of(ROWS, BUDGET, Ranks(rank, world)) for rank in range(world)]
    done = sorted(i for plan in plans for batch in plan.batches for i in batch)
    assert done == list(range(len(ROWS)))
    for block, gram in whole.grams.items():
        for index, panel in enumerate(gram.sums):
            added = torch.stack([part.grams[block].sums[index] for part in parts]).sum(0)
            assert closeness(added, panel) < 1e-14
            half = torch.stack([part.halves[block][index] for part in parts]).sum(0)
            assert closeness(half, whole.halves[block][index]) < 1e-6


def test_the_half_is_the_sum_over_even_rows() -> None:
    sums, even = passed(), passed(rows=ROWS[::2], halves=False)
    assert sums.half == even.tokens
    for block, gram in even.grams.items():
        for ours, theirs in zip(sums.halves[block], gram.sums, strict=True):
            assert closeness(ours, theirs) < 1e-6


def test_every_token_runs_once_through_the_blocks_up_to_the_last() -> None:
    model = tiny_model("llama")
    family = family_of(model)
    seen = dict.fromkeys(range(BLOCKS), 0)

    def count(block: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            seen[block] += states.shape[0] * states.shape[1]

        return hook

    writes, heads = [], []
    for block in range(BLOCKS):
        family.block(model, block).register_forward_pre_hook(count(block), with_kwargs=True)
    family.mlp_out(model, 2).register_forward_hook(lambda *_: writes.append(1))
    model.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))
    rows = [ROWS[0]] * 5
    measure(model, rows, [0, 1, 2], budget=48)
    tokens = 5 * len(ROWS[0])
    assert seen == {0: tokens, 1: tokens, 2: tokens, 3: 0}
    assert not writes and not heads, "the pass went on behind the last key"


def test_little_is_padded() -> None:
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 400, (500,), generator=source).tolist()
    rows = [tuple(range(length)) for length in lengths]
    plan = BatchPlan.of(rows, 2048)
    padded = sum(len(batch) * max(len(rows[i]) for i in batch) for batch in plan.batches)
    assert padded < 1.05 * sum(lengths)


def test_sampled_keys_are_those_of_the_rows() -> None:
    model = tiny_model("gpt2")
    keys = sample_keys(model, ROWS, [1], 1000)[1]  # (d_in, tokens)
    total = sum(map(len, ROWS))
    assert keys.shape == (56, total)
    C = measure(model, ROWS, [1])[1].matrix
    assert closeness(keys @ keys.T / total, C) < 1e-5
    few = sample_keys(model, ROWS, [1], 10)[1]
    assert 5 <= few.shape[1] <= 10
    assert torch.equal(few[:, 1], keys[:, -(-total // 10)])


def test_no_rows_are_an_error_and_no_partial(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="no text"):
        measure(tiny_model("gpt2"), [()], [1], partial=always(tmp_path))
    assert not list(tmp_path.iterdir())
