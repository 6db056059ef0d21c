"""A folder with one wrong number, id or setting fails; one that is whole passes.

For every topic a small part of the folder is copied, one thing in the copy is changed, and
the comparison that `test_recorded` makes must object. What is changed is found in the files,
so this holds for any folder of the format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.check_alphaedit import check_alphaedit
from parity.check_editing import check_memit, check_rome
from parity.check_reading import check_forward, check_moment, check_tokens
from parity.recorded import TOPICS, Recorded, close, models_in

FURTHER: dict[str, tuple[Callable[..., None], str]] = {
    "rome_bosfixed": (check_rome, "v"),
    "memit_earlystop": (check_memit, "z"),
}
"""Files that not every model has: what compares a case, and a tensor that each case has."""

Check = Callable[[Recorded], None]
Change = Callable[[Any], Any]


class Spoil(NamedTuple):
    """One change: in which file, where in its JSON, and what becomes of the value there."""

    file: str
    path: tuple[str | int, ...]
    change: Change


def more(value: Any) -> Any:
    """Return a number that is wrong."""
    return value + 1 if isinstance(value, int) else value * 1.1


def first_more(values: list[Any]) -> list[Any]:
    """Return a list whose first number is wrong."""
    return [more(values[0]), *values[1:]]


def swapped(values: list[Any]) -> list[Any]:
    """Return a list with another first entry, the one most unlike it in the order."""
    return [max(values), *values[1:]] if values[0] != max(values) else [min(values), *values[1:]]


def longer(text: str) -> str:
    """Return another text."""
    return f"{text} not"


TOKENS = (
    Spoil("tokens", (0, "input_ids"), first_more),
    Spoil("tokens", (-1, "offsets_last"), more),
    Spoil("tokens", (-1, "offsets_first"), more),
    Spoil("tokens", (-1, "offsets_first_after_last"), more),
    Spoil("tokens", (1, "cyj", "subject_last", "rome"), more),
    Spoil("tokens", (1, "subject"), longer),
    Spoil("tokens", (1, "char_span"), first_more),
    Spoil("../../inputs/token_pairs", (0, "prompt"), longer),
)
FORWARD = (
    Spoil("forward", (0, "input_ids"), first_more),
    Spoil("forward", (0, "top1"), longer),
    Spoil("forward", (0, "prompt"), longer),
)
MOMENT = (
    Spoil("cov", ("sampled_indices",), swapped),
    Spoil("cov", ("token_count_by_text",), first_more),
    Spoil("cov", ("max_length",), lambda length: 1),
    Spoil("cov", ("layers", "*", "token_count"), more),
    Spoil("../../inputs/stat_texts", ("=sampled",), longer),
)
ROME = (
    Spoil("rome", ("cases", "=case", "n_iterations"), more),
    Spoil("rome", ("cases", "=case", "hparams", "v_lr"), more),
    Spoil("rome", ("cases", "=case", "hparams", "kl_factor"), more),
    Spoil("rome", ("cases", "=case", "hparams", "mom2_adjustment"), lambda on: not on),
    Spoil("rome", ("cases", "=case", "request", "target_new", "str"), longer),
    Spoil("rome", ("context_templates", -1), lambda text: f"Not {text}"),
)
MEMIT = (
    Spoil("memit", ("cases", "=case", "n_iterations"), first_more),
    Spoil("memit", ("cases", "=case", "final_loss"), first_more),
    Spoil("memit", ("cases", "=case", "z_minus_init_norm"), first_more),
    Spoil("memit", ("cases", "=case", "delta_fro", "*"), more),
    Spoil("memit", ("cases", "=case", "hparams", "v_weight_decay"), more),
    Spoil("memit", ("cases", "=case", "hparams", "mom2_update_weight"), more),
    Spoil("memit", ("cases", "=case", "case_ids"), first_more),
    Spoil("memit", ("context_templates", 1, 0), lambda text: f"Not {text}"),
    Spoil("../../inputs/requests", ("memit", 0, "subject"), longer),
)
ALPHAEDIT = (
    Spoil("alphaedit", ("nullspace_threshold",), lambda cut: cut * 2),
    Spoil("alphaedit", ("projector", "*", "rank"), more),
    Spoil("alphaedit", ("projector", "*", "nearest_above"), more),
    Spoil("alphaedit", ("hparams", "L2"), more),
    Spoil("alphaedit", ("batches", "*", "n_iterations"), first_more),
)


class Copy:
    """One model's recorded results on some files, copied where they can be changed."""

    def __init__(
        self, whole: Recorded, folder: Path, topics: tuple[str, ...] = (*TOPICS, *FURTHER)
    ) -> None:
        self.whole, self.folder = whole, folder
        shutil.copytree(whole.folder / "inputs", folder / "inputs", copy_function=shutil.copyfile)
        shutil.copytree(whole.folder / "models" / whole.name, folder / "models" / whole.name)
        self.files = folder / "goldens" / whole.name
        self.files.mkdir(parents=True)
        for topic in topics:
            for path in (whole.folder / "goldens" / whole.name).glob(f"{topic}.*"):
                shutil.copyfile(path, self.files / path.name)

    def fails(self, check: Check) -> bool:
        """Whether a comparison objects to the copy as it stands."""
        try:
            check(self.whole.moved(self.folder))
        except AssertionError:
            return True
        return False

    def spoil(self, spoil: Spoil, case: str) -> Callable[[], None]:
        """Change one value of a JSON file; return what takes the change back."""
        path = (self.files / f"{spoil.file}.json").resolve()
        before = path.read_text(encoding="utf-8")
        document = place = json.loads(before)
        steps = [self.step(step, case) for step in spoil.path]
        for number, step in enumerate(steps, start=1):
            step = next(iter(place)) if step == "*" else step
            if number == len(steps):
                place[step] = spoil.change(place[step])
            place = place[step]
        path.write_text(json.dumps(document), encoding="utf-8")
        return lambda: path.write_text(before, encoding="utf-8") and None

    def step(self, step: str | int, case: str) -> str | int:
        """Return a step of a path, with what the folder says in place of `=…`."""
        if step == "=sampled":
            return self.whole.json("cov")["sampled_indices"][0]
        return case if step == "=case" else step

    def flip(self, topic: str, name: str) -> Callable[[], None]:
        """Turn the sign of a tensor's largest number; return what takes it back."""
        path = self.files / f"{topic}.safetensors"
        before, tensors = path.read_bytes(), load_file(path)
        flat = tensors[name].flatten().clone()
        flat[flat.abs().argmax()] *= -1
        save_file({**tensors, name: flat.view_as(tensors[name])}, path)
        return lambda: path.write_bytes(before) and None


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, golden: Path) -> Recorded:
    """What is recorded on one model: the one with the fewest files."""
    return min(all_in(golden), key=lambda one: len(list((golden / "goldens" / one.name).iterdir())))


def all_in(golden: Path) -> list[Recorded]:
    """Return what is recorded, per model."""
    return [Recorded(golden, name) for name in models_in(golden)]


@pytest.fixture
def copy(whole: Recorded, tmp_path: Path) -> Copy:
    return Copy(whole, tmp_path)


def tensors_by_kind(whole: Recorded, topic: str, prefix: str = "") -> list[str]:
    """Return one tensor of every kind: the first of those that differ by their numbers only."""
    found: dict[str, str] = {}
    for name in sorted(whole.tensors(topic).tensors):
        if name.startswith(prefix):
            kind = "".join(letter for letter in name if not letter.isdigit())
            found.setdefault(kind, name)
    assert found, f"{topic} has no tensors {prefix}…"
    return list(found.values())


def smallest(whole: Recorded, topic: str, tensor: str) -> str:
    """Return the case with the fewest requests that has a tensor."""
    cases, names = whole.json(topic)["cases"], whole.tensors(topic).tensors
    having = [case for case in cases if f"{case}.{tensor}" in names]
    assert having, f"no case of {topic} has {tensor}"
    return min(having, key=lambda case: cases[case].get("n_requests", 1))


def assert_all_fail(
    copy: Copy, topic: str, check: Check, spoils: tuple[Spoil, ...], case: str = ""
) -> None:
    """Change one thing after the other; every change must be seen, and the untouched copy pass."""
    assert not copy.fails(check), "the copy is not whole"
    names = [] if topic == "tokens" else tensors_by_kind(copy.whole, topic, case and f"{case}.")
    unseen = []
    for name in names:
        undo = copy.flip(topic, name)
        unseen += [] if copy.fails(check) else [name]
        undo()
    for spoil in spoils:
        undo = copy.spoil(spoil, case)
        unseen += [] if copy.fails(check) else [f"{spoil.file} {spoil.path}"]
        undo()
    assert not unseen, f"changed without being seen: {unseen}"


def test_tokens(copy: Copy) -> None:
    assert_all_fail(copy, "tokens", check_tokens, TOKENS)


def test_forward(copy: Copy) -> None:
    assert_all_fail(copy, "forward", check_forward, FORWARD)


def test_second_moment(copy: Copy) -> None:
    assert_all_fail(copy, "cov", check_moment, MOMENT)


def test_rome(copy: Copy) -> None:
    case = smallest(copy.whole, "rome", "delta_W")
    assert_all_fail(copy, "rome", partial(check_rome, topic="rome", case=case), ROME, case)


@pytest.mark.parametrize("tensor", ["z", "layer{}.delta_W"])
def test_memit(copy: Copy, tensor: str) -> None:
    first = next(iter(copy.whole.json("cov")["layers"]))
    case = smallest(copy.whole, "memit", tensor.format(first))
    spoils = MEMIT if tensor == "z" else ()
    assert_all_fail(copy, "memit", partial(check_memit, topic="memit", case=case), spoils, case)


def test_alphaedit(copy: Copy) -> None:
    assert_all_fail(copy, "alphaedit", partial(check_alphaedit, given=True), ALPHAEDIT)


@pytest.mark.parametrize("topic", FURTHER)
def test_further_files(golden: Path, tmp_path: Path, topic: str) -> None:
    """What only some models have: the first that has it."""
    check_case, tensor = FURTHER[topic]
    for whole in [one for one in all_in(golden) if one.has(topic)][:1]:
        copy, case = Copy(whole, tmp_path), smallest(whole, topic, tensor)
        check = partial(check_case, topic=topic, case=case)
        assert not copy.fails(check), "the copy is not whole"
        copy.flip(topic, f"{case}.{tensor}")
        assert copy.fails(check), f"{topic} was changed without being seen"


def test_weights(copy: Copy) -> None:
    path = copy.folder / "models" / copy.whole.name / "model.safetensors"
    tensors, name = load_file(path), copy.whole.family.weight_name(0)
    tensors[name].flatten()[0] += 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AssertionError, match="differs by"):
        check_forward(Recorded(copy.folder, copy.whole.name))


def test_a_tensor_too_many_or_missing(copy: Copy) -> None:
    """What nobody compares is an error, and so is what is not there."""
    path = copy.files / "cov.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "layer99.moment": torch.ones(2, 2)}, path)
    assert copy.fails(check_moment)
    path.unlink()
    assert copy.fails(check_moment)


def test_a_folder_without_results(tmp_path: Path, copy: Copy) -> None:
    with pytest.raises(AssertionError, match="no goldens"):
        models_in(tmp_path / "nothing")
    (copy.files / "rome.json").unlink()
    with pytest.raises(AssertionError, match="rome"):
        models_in(copy.folder)


def test_close() -> None:
    ones = torch.ones(4)
    assert close(ones * 1.001, ones, 1e-2) == pytest.approx(1e-3, rel=1e-3)
    for wrong in (ones * 1.1, ones * float("nan"), torch.ones(2, 2)):
        with pytest.raises(AssertionError):
            close(wrong, ones, 1e-2)
