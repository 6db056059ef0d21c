"""A folder with one wrong number in a causal trace fails; one that is whole passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from parity.check_trace import check_trace
from parity.recorded import Recorded
from parity.test_corruption import Copy, Spoil, all_in, first_more, longer, more

FIRST = "case0."
CASE = ("cases", f"{FIRST}mlp.w3")
SPOILS = (
    Spoil("trace", ("embedding_std",), more),
    Spoil("trace", ("noise",), more),
    Spoil("trace", ("samples",), more),
    Spoil("trace", (*CASE, "low_score"), more),
    Spoil("trace", (*CASE, "high_score"), more),
    Spoil("trace", (*CASE, "window"), more),
    Spoil("trace", (*CASE, "kind"), lambda kind: "attn"),
    Spoil("trace", (*CASE, "answer"), longer),
    Spoil("trace", (*CASE, "answer_stripped"), longer),
    Spoil("trace", (*CASE, "attribute"), longer),
    Spoil("trace", (*CASE, "subject_range"), first_more),
    Spoil("trace", (*CASE, "input_ids"), first_more),
    Spoil("trace", (*CASE, "input_tokens", 0), longer),
    Spoil("trace", ("cases", f"{FIRST}hidden.replace", "low_score"), more),
    Spoil("trace", ("cases", f"{FIRST}hidden.uniform", "low_score"), more),
    Spoil("trace", ("cases", f"{FIRST}expect_mismatch", "correct_prediction"), lambda on: not on),
    Spoil("../../inputs/trace_cases", (0, "prompt"), longer),
    Spoil("../../inputs/trace_cases", (-1, "subject"), longer),
)


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Copy:
    """The first model with recorded scores, cut to its first case."""
    whole = next(one for one in all_in(golden) if one.has_tensors("trace"))
    copied = Copy(whole, tmp_path, ("trace",))
    path = copied.files / "trace.json"
    told = json.loads(path.read_text("utf-8"))
    told["cases"] = {name: one for name, one in told["cases"].items() if name.startswith(FIRST)}
    path.write_text(json.dumps(told), encoding="utf-8")
    scores = copied.files / "trace.safetensors"
    save_file({n: t for n, t in load_file(scores).items() if n.startswith(FIRST)}, scores)
    return copied


def test_every_wrong_number_is_seen(copy: Copy) -> None:
    assert not copy.fails(check_trace), "the copy is not whole"
    unseen = []
    for spoil in SPOILS:
        undo = copy.spoil(spoil, "")
        unseen += [] if copy.fails(check_trace) else [f"{spoil.file} {spoil.path}"]
        undo()
    for name in load_file(copy.files / "trace.safetensors"):
        undo = copy.flip("trace", name)
        unseen += [] if copy.fails(check_trace) else [name]
        undo()
    assert not unseen, f"changed without being seen: {unseen}"


def test_a_tensor_too_many_or_missing(copy: Copy) -> None:
    path = copy.files / "trace.safetensors"
    tensors = load_file(path)
    scores = tensors[f"{FIRST}hidden.scores"]
    for name in (f"{FIRST}mlp.w9.scores", "other"):
        save_file({**tensors, name: scores.clone()}, path)
        assert copy.fails(check_trace), name
    save_file({name: t for name, t in tensors.items() if t is not scores}, path)
    assert copy.fails(check_trace)


def test_where_the_references_fail(golden: Path, tmp_path: Path) -> None:
    """Noise is compared there, too; and that they do fail."""
    for whole in [one for one in all_in(golden) if one.has("trace")]:
        if whole.has_tensors("trace"):
            continue
        copied = Copy(whole, tmp_path / whole.name, ("trace",))
        first = next(iter(whole.json("trace")["cases"]))
        for spoil in (
            Spoil("trace", ("embedding_std",), more),
            Spoil("trace", ("cases", first, "error"), lambda text: "none"),
        ):
            undo = copied.spoil(spoil, "")
            assert copied.fails(check_trace), spoil.path
            undo()


def test_ours_is_held_against_full_runs_there(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong trace of ours is seen as well where nothing is recorded."""
    from parity import check_trace as module

    def other(recorded: Recorded, *args: object) -> object:
        ours = real(recorded, *args)
        ours.scores["mlp"][:] += 1e-3
        return ours

    real = module._traced
    monkeypatch.setattr(module, "_traced", other)
    for whole in [one for one in all_in(golden) if one.has("trace")]:
        if not whole.has_tensors("trace"):
            with pytest.raises(AssertionError, match="mlp"):
                check_trace(whole)
