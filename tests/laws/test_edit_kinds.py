"""Promises 1, 2, 5 and 7 for edits of every kind: one mechanism carries them all."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.core.errors import ErrataError
from errata.methods.edit import compute_edit
from errata.metrics.likelihood import likelihoods
from errata.models.families import family_of, weight_of
from errata.models.tokens import encode
from errata.patches.base import EDIT_KINDS, Edit, edit_kind, load_edit
from errata.patches.edited_model import EditedModel
from errata.patches.export import export_lora, export_merged
from errata.patches.module_patch import ModulePatch
from errata.patches.prompt_patch import PromptPatch
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from laws.bench import edited_model, found, moments_of, quick, untidy, weights
from laws.kinds import EDITS, edits_of, provenance
from tiny import FACTS

FAMILIES = ("gpt2", "gpt_neox, sequential", "llama", "qwen2", "gemma2")
over_kinds = pytest.mark.parametrize("kind", list(EDITS))
over_some = pytest.mark.parametrize("model_type", FAMILIES)
TEXTS = [fact.text for fact in FACTS]


def behaviour(edited: EditedModel) -> list[float]:
    """Return the NLL of each fact's answer, one prompt at a time."""
    return [likelihoods(edited, [(f.text, f.answer)])[0].nll for f in FACTS]


def stack_state(edited: EditedModel) -> tuple[Any, ...]:
    return weights(edited.model), behaviour(edited), edited.rendered("It is")


@over_some
@over_kinds
def test_an_edit_acts_and_leaves_everything_as_found(model_type: str, kind: str) -> None:
    edited = edited_model(model_type)
    edit, untouched = EDITS[kind](edited), behaviour(edited)
    untidy(edited.model)
    before, template = found(edited.model), edited.rendered("x")
    with edit.applied(edited):
        assert edited.patches == [edit]
        modes = {name: module.training for name, module in edited.model.named_modules()}
        assert modes == before["modes"]
        assert behaviour(edited)[0] != pytest.approx(untouched[0], abs=1e-6)
        with edited.without_patches():
            with edited.without_patches():
                pass
            assert found(edited.model) == before
            assert edited.rendered("x") == template
    with pytest.raises(KeyboardInterrupt), edit.applied(edited):
        raise KeyboardInterrupt
    assert found(edited.model) == before
    assert (edited.patches, edited.rendered("x")) == ([], template)


@over_kinds
def test_a_bare_model_takes_what_does_not_change_prompts(kind: str) -> None:
    edited = edited_model("llama")
    edit, before = EDITS[kind](edited), found(edited.model)
    ids = torch.tensor([encode(edited.tokenizer, TEXTS[0]).ids])
    plain = edited.model(ids).logits
    if isinstance(edit, PromptPatch):
        with pytest.raises(ErrataError, match="receives tokens"), edit.applied(edited.model):
            pass
    else:
        with edit.applied(edited.model) as model:
            assert not torch.equal(model(ids).logits, plain)
    assert found(edited.model) == before


@over_some
@over_kinds
def test_a_file_is_its_edit(model_type: str, kind: str, tmp_path: Path) -> None:
    edit = EDITS[kind](edited_model(model_type))
    path = edit.save(tmp_path / "p.safetensors")
    again = load_edit(path)
    assert (type(again), again, again.digest) == (type(edit), edit, edit.digest)
    assert again.save(tmp_path / "q.safetensors").read_bytes() == path.read_bytes()
    assert type(edit).load(path) == edit
    assert edit_kind(edit.kind) is type(edit)
    assert edit.summary
    other = next(each for each in map(edit_kind, EDIT_KINDS) if each is not type(edit))
    with pytest.raises(ErrataError, match=f"holds a {edit.kind} patch, not a {other.kind}"):
        other.load(path)


@over_some
def test_a_stack_of_all_kinds_does_not_depend_on_how_it_was_reached(model_type: str) -> None:
    straight = edited_model(model_type)
    bare, pool = stack_state(straight), list(edits_of(straight).values())
    second = PromptPatch("Well, {prompt}", provenance(straight))
    book = next(edit for edit in pool if isinstance(edit, ModulePatch))
    ((path, held),) = book.modules.items()
    everywhere, book_type = torch.tensor([1e4]), type(held)
    pool[4] = ModulePatch({path: book_type(held.keys, held.values, everywhere)}, book.provenance)
    rival = ModulePatch({path: book_type(held.keys, -held.values, everywhere)}, book.provenance)
    pool += [second, rival]
    wanted = [pool[i] for i in (5, 2, 6, 4, 3, 7, 0)]
    for edit in wanted:
        straight.apply(edit)
    chance, winding = random.Random(3), edited_model(model_type)
    for _ in range(15):
        if winding.patches and chance.random() < 0.4:
            winding.undo(chance.choice(winding.patches))
        elif left := [edit for edit in pool if edit not in winding.patches]:
            winding.apply(chance.choice(left))
    for edit in list(winding.patches):
        winding.undo(edit)
    assert stack_state(winding) == bare
    for edit in [*wanted[:3], pool[1], *wanted[3:]]:
        winding.apply(edit)
    winding.undo(pool[1])
    assert winding.patches == wanted
    assert stack_state(winding) == stack_state(straight)
    turned = edited_model(model_type)
    for edit in [wanted[5], *wanted[:5], wanted[6]]:
        turned.apply(edit)
    assert behaviour(turned) != behaviour(straight), "the order of two codebooks is lost"


@over_kinds
def test_another_base_is_refused(kind: str) -> None:
    edit, other = EDITS[kind](edited_model("llama")), edited_model("llama")
    with torch.no_grad():
        weight_of(other.model, family_of(other.model).weight_name(1))[1].add_(0.01)
    before = found(other.model)
    with pytest.raises(ErrataError, match="was made for") as caught:
        other.apply(edit)
    assert "allow_base=True" in " ".join(caught.value.hints)
    assert (found(other.model), other.patches) == (before, [])
    other.apply(edit, allow_base=True)
    assert other.patches == [edit]


@over_kinds
def test_an_edit_for_another_architecture_leaves_nothing_behind(kind: str) -> None:
    edit, other = EDITS[kind](edited_model("llama")), edited_model("gpt2")
    before = found(other.model)
    if kind != "prompt":
        with pytest.raises(ErrataError):
            other.apply(edit, allow_base=True)
    assert (found(other.model), other.patches) == (before, [])


@over_kinds
def test_a_deep_copy_has_a_stack_of_its_own(kind: str) -> None:
    edited = edited_model("llama")
    bare = stack_state(edited)
    edited.apply(EDITS[kind](edited))
    state, twin = stack_state(edited), copy.deepcopy(edited)
    assert stack_state(twin) == state
    twin.undo()
    assert stack_state(twin) == bare
    assert stack_state(edited) == state


@over_kinds
def test_baking_keeps_what_is_no_weight(kind: str) -> None:
    edited = edited_model("llama")
    edit = EDITS[kind](edited)
    edited.apply(edit)
    state, base = stack_state(edited), edited.base
    edited.bake()
    assert stack_state(edited) == state
    assert edited.patches == ([] if isinstance(edit, WeightPatch) else [edit])
    assert (edited.base != base) == isinstance(edit, WeightPatch)


@over_some
@over_kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_answer_as_each_alone(model_type: str, kind: str, side: str) -> None:
    edited = edited_model(model_type)
    edited.apply(EDITS[kind](edited))
    rows = [encode(edited.tokenizer, edited.rendered(text)).ids for text in TEXTS]
    width = max(map(len, rows))
    for ids in rows:
        fill = width - len(ids)
        places = slice(fill, width) if side == "left" else slice(0, len(ids))
        padded, mask = (
            torch.zeros(len(rows), width, dtype=torch.long),
            torch.zeros(len(rows), width),
        )
        padded[:, places], mask[:, places] = torch.tensor(ids), 1
        positions = (mask.cumsum(1) - 1).clamp(min=0).long()
        with torch.no_grad():
            alone = edited.model(torch.tensor([ids])).logits[0, -1]
            given = {"attention_mask": mask.long(), "position_ids": positions}
            together = edited.model(padded, **given).logits[0, places][-1]
        assert torch.allclose(together, alone, atol=2e-4)
    pairs = [(fact.text, fact.answer) for fact in FACTS]
    batch = [each.nll for each in likelihoods(edited, pairs)]
    assert batch == pytest.approx(behaviour(edited), abs=1e-4)


def test_generation_renders_and_ignores_the_checkpoints_own_settings() -> None:
    edited = edited_model("llama")
    patch = EDITS["prompt"](edited)
    plain = edited.generate(patch.render(TEXTS[1]), 6)  # type: ignore[attr-defined]
    before = edited.generate(TEXTS[1], 6)
    first = edited.tokenizer.encode(before)[1]
    edited.model.generation_config.suppress_tokens = [first]
    edited.model.generation_config.min_new_tokens = 5
    own = edited.model.generation_config
    assert edited.generate(TEXTS[1], 6) == before
    edited.apply(patch)
    assert edited.generate(TEXTS[1], 6) == plain != before
    assert edited.model.generation_config is own


def test_tied_weights_named_twice_take_both_changes() -> None:
    edited = edited_model("qwen2")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tied = edited.model.get_parameter(names[0])
    deltas = [torch.full(tied.shape, size) for size in (0.25, 0.5)]
    pair = [
        WeightPatch({name: Update(None, delta)}, provenance(edited))
        for name, delta in zip(names, deltas, strict=True)
    ]
    before = tied.detach().clone()
    for patch in pair:
        edited.apply(patch)
    assert torch.equal(tied, before + 0.25 + 0.5)
    edited.undo(pair[0])
    assert torch.equal(tied, before + 0.5)
    edited.undo()
    assert torch.equal(tied, before)


def test_a_sparse_change_is_exact_and_small(tmp_path: Path) -> None:
    delta = torch.zeros(60, 90)
    delta[3, 4], delta[59, 89] = 1e-30, -2.5
    update = Update.of_delta(delta)
    assert (update.form, update.shape) == ("sparse", (60, 90))
    assert torch.equal(update.delta(), delta)
    assert sum(tensor.nbytes for tensor in update.tensors().values()) < 64
    assert Update.of_delta(torch.ones(3)).form == "dense"


def test_what_needs_keys_says_that_there_are_none() -> None:
    edited = edited_model("llama")
    edited.apply(EDITS["keyless"](edited))
    with pytest.raises(ErrataError, match="has no edit keys"):
        compute_edit(edited, FACTS[:1], quick("alphaedit"), moments=moments_of("llama"))


@over_kinds
def test_export_holds_an_edit_or_says_what_it_leaves_out(kind: str, tmp_path: Path) -> None:
    edited = edited_model("llama")
    edit: Edit = EDITS[kind](edited)
    edited.apply(edit)
    written = export_merged(edited, tmp_path / "merged")
    left = any("could not be merged" in note for note in written.notes)
    assert left == (not isinstance(edit, WeightPatch))
    held = [load_edit(path) for path in (tmp_path / "merged" / "patches").iterdir()]
    assert held == [edit]
    if kind in ("low-rank", "keyless"):
        export_lora(edited, tmp_path / "lora")
    else:
        with pytest.raises(ErrataError, match="a LoRA can only"):
            export_lora(edited, tmp_path / "lora")
