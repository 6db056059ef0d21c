"""Token ids and settings as the reference implementations make them, defects included.

They tokenise the target alone, paste its decoded beginning behind the prompt and tokenise
the whole again; the last places are then taken for the target's, whatever stands there.
Where that goes wrong (BOS or a lone "▁" counts as a target token), the recorded numbers
can be met only with the same ids, so they are built here and fed to our mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from errata.data.request import SLOT, EditRequest
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Contexts, Search
from errata.models.tokens import Encoded, Position, TokenRow, encode, position_of

ESSENCE = "{} is a"
STOP_AT = 0.05
WORD = "▁"
"""How a SentencePiece token shows the space before it; alone, it is a token without a letter."""

Repair = Literal["none", "bos", "word"]
"""What is taken off the target's front: nothing, BOS (or unk), or a lone "▁" as well."""


def target_ids(tokenizer: PreTrainedTokenizerBase, target: str, repair: Repair) -> tuple[int, ...]:
    """Return the ids of a target on its own, a space put before it."""
    ids = list(tokenizer(target if target.startswith(" ") else f" {target}")["input_ids"])
    if repair != "none" and ids[0] in (tokenizer.bos_token_id, tokenizer.unk_token_id):
        ids = ids[1:]
    if repair == "word" and has_lone_word(tokenizer, ids):
        ids = ids[1:]
    return tuple(ids)


def has_lone_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether target ids begin with a "▁" of its own."""
    return tokenizer.convert_ids_to_tokens(ids[0]) == WORD


def reference_rewrite(
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    templates: Sequence[Sequence[str]],
    where: Position,
    repair: Repair,
) -> Rewrite:
    """Encode one recorded request behind groups of context templates."""
    assert where in ("subject_last", "subject_first_after_last"), f"the reference misplaces {where}"
    assert templates[0][0] == SLOT, "the first context is not the bare prompt"
    contexts = [template for group in templates for template in group]
    targets = target_ids(tokenizer, record["target_new"]["str"], repair)
    start = tokenizer.decode(targets[:-1])
    if repair == "word" and start and not start.startswith(" "):
        start = f" {start}"
    rows = []
    for template in contexts:
        coded, place = located(tokenizer, record, template, start, where)
        rows.append(TokenRow(coded.ids, place, targets))
    keys = []
    for group in templates:
        found = [located(tokenizer, record, template, "", where) for template in group]
        keys.append(tuple(TokenRow(coded.ids, place).key for coded, place in found))
    essence, place = located(tokenizer, {**record, "prompt": ESSENCE}, SLOT, "", where)
    return Rewrite(tuple(rows), TokenRow(essence.ids, place).key, tuple(keys))


def located(
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    template: str,
    ending: str,
    where: Position,
) -> tuple[Encoded, int]:
    """Encode a recorded prompt in its context, with an ending; return also the edited position."""
    text, subject = template.replace(SLOT, record["prompt"]), record["subject"]
    start = text.index(SLOT)
    coded = encode(tokenizer, text.replace(SLOT, subject) + ending)
    return coded, position_of(coded, (start, start + len(subject)), where)


def as_searched(rewrite: Rewrite) -> Rewrite:
    """Read h₀ where the reference does: in the first text with its target, not in the key's."""
    return replace(rewrite, keys=((rewrite.rows[0].key,),))


def request_of(record: Mapping[str, Any]) -> EditRequest:
    """Return a recorded request as one of ours."""
    return EditRequest(
        prompt=record["prompt"], subject=record["subject"], target=record["target_new"]["str"]
    )


def prefixes_of(templates: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return context templates as our prefixes; the bare prompt is always among ours."""
    flat = [template for group in templates for template in group]
    assert all(template.endswith(SLOT) for template in flat), "a context goes on behind the prompt"
    return tuple(template.removesuffix(SLOT) for template in flat if template != SLOT)


def settings_of(
    hparams: Mapping[str, Any], templates: Sequence[Sequence[str]], loss_block: int | None
) -> dict[str, Any]:
    """Return the settings that all our methods share, from recorded hyperparameters."""
    return {
        "blocks": tuple(hparams["layers"]),
        "position": hparams["fact_token"],
        "contexts": Contexts(prefixes=prefixes_of(templates)),
        "search": Search(
            steps=hparams["v_num_grad_steps"],
            learning_rate=hparams["v_lr"],
            weight_decay=hparams["v_weight_decay"],
            clamp=hparams["clamp_norm_factor"],
            kl_weight=hparams["kl_factor"],
            stop_at=STOP_AT,
            loss_block=loss_block,
            essence_prompt=ESSENCE,
        ),
    }
