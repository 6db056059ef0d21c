"""With prompt patches on the stack, an edit is computed on the prompts that the model receives."""

from __future__ import annotations

import pytest
import torch

from errata.methods.edit import compute_edit
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from errata.patches.prompt_patch import PromptPatch
from laws.bench import PREFIXES, edited_model, moments_of, over_methods, quick
from laws.kinds import fact_before, provenance
from tiny import FACTS

FACT = FACTS[1]


def patched(model_type: str) -> EditedModel:
    """Return a model with another fact before each prompt, and words on both sides of it."""
    edited = edited_model(model_type)
    edited.apply(fact_before(edited))
    edited.apply(PromptPatch("Well, {prompt} so", provenance(edited)))
    return edited


@over_methods
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_an_edit_equals_that_of_the_rendered_request(model_type: str, method_name: str) -> None:
    """The request that holds the rendered prompt itself is given to the unpatched model."""
    edited, moments = patched(model_type), moments_of(model_type)
    bare_prompt = {"contexts": {"prefixes": ()}}
    method = quick(method_name, **bare_prompt)
    before, after = edited.rendered("|").split("|")
    search = method.search.model_dump()
    search["essence_prompt"] = edited.rendered(method.search.essence_prompt)
    found = compute_edit(edited, [FACT], method, moments=moments)
    wanted = compute_edit(
        edited_model(model_type),
        [FACT.with_values(prompt=f"{before}{FACT.prompt}{after}")],
        quick(method_name, **bare_prompt, search=search),
        moments=moments,
    )
    assert found.updates.keys() == wanted.updates.keys()
    for name, update in found.updates.items():
        assert torch.equal(update.delta(), wanted.updates[name].delta())
        assert torch.equal(update.K, wanted.updates[name].K)
    with edited.without_patches():
        plain = compute_edit(edited, [FACT], method, moments=moments)
    for name, update in found.updates.items():
        assert not torch.equal(update.K, plain.updates[name].K)


def test_context_prefixes_are_rendered_with_the_prompt() -> None:
    edited = patched("llama")
    (rewrite,) = quick("memit").rewrites(edited, [FACT])
    for prefix, row in zip(("", *PREFIXES), rewrite.rows, strict=True):
        text = edited.rendered(prefix + FACT.text)
        encoded = encode(edited.tokenizer, text)
        assert row.ids[: len(encoded.ids)] == encoded.ids
        end = text.rindex(FACT.subject) + len(FACT.subject)
        left, right = encoded.offsets[row.position]
        assert left < end <= right
