"""Comparisons of the scores of prompts with what was recorded.

Scores are taken on the unedited model and after the recorded edits, which the package makes
again. The rows of token ids are the reference's, as its variants cut them; behind the ids
everything is the package's own way. Variants: `cyj` the fork as it is, `bos_fixed` the fork
without special tokens in targets, `alphaedit_repo` the AlphaEdit repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from errata.data.request import SLOT
from errata.methods import METHODS
from errata.metrics.likelihood import Likelihood, score_token_rows
from errata.models.tokens import TokenRow, encode
from errata.patches.weight_patch import add, keeping
from parity.check_editing import searched
from parity.recorded import Recorded, close
from parity.reference_ids import has_lone_word, reference_rewrite, settings_of

RTOL = {"pre": 1e-5, "edited": 5e-4, "text": 1e-12, "perplexity": 1e-5}
"""Allowed relative differences; NLLs count as at least one nat large."""
KINDS = ("rewrite", "paraphrase", "neighborhood")
Records = Sequence[Mapping[str, Any]]


def hold(
    recorded: Recorded, kind: str, what: str, ours: Any, theirs: Any, floor: float = 0.0
) -> None:
    """Compare numbers under the tolerance of a kind, and remember the difference."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
    try:
        difference = close(ours, theirs, RTOL[kind], floor)
    except AssertionError as error:
        raise AssertionError(f"{recorded.name}, {what}: {error}") from None
    key = ("scores", kind)
    recorded.worst[key] = max(difference, recorded.worst.get(key, 0.0))


def check_states(recorded: Recorded) -> None:
    """CounterFact and zsRE on the unedited model and after every recorded edit."""
    file = recorded.json("eval")
    assert "pre" in file["states"], "eval.json has no scores of the unedited model"
    for state, variants in file["states"].items():
        with edited_as(recorded, state):
            for variant, expected in variants.items():
                kind = "pre" if state == "pre" else "edited"
                what = f"{state}, {variant}"
                check_counterfact(recorded, kind, what, variant, expected["counterfact"])
                known = file["zsre_records"]
                records = known.get(variant, known["cyj"])
                check_zsre(recorded, what, variant, records, expected["zsre"])


@contextmanager
def edited_as(recorded: Recorded, state: str) -> Iterator[None]:
    """Edit the model as a state of eval.json says, and take it back."""
    if state == "pre":
        yield
        return
    method, rewrites = edits_of(recorded, state)
    model = recorded.model
    targets = searched(recorded, method, rewrites)
    updates = method.updates(model, rewrites, targets, recorded.moments())
    with keeping(model, updates):
        for name, update in updates.items():
            add(model, name, update.delta())
        yield


def edits_of(recorded: Recorded, state: str) -> tuple[Any, list[Any]]:
    """Return method and rewrites of `post_memit_batch<N>`, `_rome_req<I>` or `_memit_zsre<N>`."""
    kind = state.removeprefix("post_").rstrip("0123456789")
    number = int(state.removeprefix("post_").removeprefix(kind))
    requests, tokenizer = recorded.inputs("requests"), recorded.tokenizer
    if kind == "rome_req":
        file = recorded.json("rome")
        case, templates = file["cases"][f"req{number}.mom2_on"], [file["context_templates"]]
        settings = settings_of(case["hparams"], templates, loss_block=None)
        rome = METHODS["rome"](**settings, second_moment=True)
        records, repair, method = [case["request"]], "none", rome
    else:
        assert kind in ("memit_batch", "memit_zsre"), f"eval.json has an unknown state {state}"
        file = recorded.json("memit")
        templates, hparams = file["context_templates"], file["cases"]["batch4"]["hparams"]
        settings = settings_of(hparams, templates, hparams["v_loss_layer"])
        method = METHODS["memit"](**settings, moment_weight=hparams["mom2_update_weight"])
        zsre = recorded.json("eval")["zsre_records"]["cyj"]
        source = zsre if kind == "memit_zsre" else requests["memit"]
        records = [record.get("requested_rewrite", record) for record in source[:number]]
        repair = "bos"
    return method, [
        reference_rewrite(tokenizer, record, templates, method.position, repair)
        for record in records
    ]


def counterfact_row(recorded: Recorded, variant: str, prompt: str, target: str) -> TokenRow:
    """Return the ids that the reference scores a target on, and its target ids.

    The prompt's length is taken alone, the target's from `" " + target`, whatever the two
    become together. Only for Llama-2 does the fork drop BOS and the lone "▁".
    """
    tokenizer = recorded.tokenizer
    together, length = (
        tokenizer(f"{prompt} {target}")["input_ids"],
        len(tokenizer(prompt)["input_ids"]),
    )
    targets = target_ids(recorded, variant, target)
    ids = together[: length + len(targets) - 1]
    assert len(ids) == length + len(targets) - 1, "a target reaches into the padding"
    return TokenRow(tuple(ids), length - 1, targets)


def target_ids(recorded: Recorded, variant: str, target: str) -> tuple[int, ...]:
    """Return a target's ids as a variant cuts them."""
    ids = list(recorded.tokenizer(f" {target}")["input_ids"])
    word = has_lone_word(
        recorded.tokenizer, [i for i in ids if i != recorded.tokenizer.bos_token_id]
    )
    if (word or variant != "cyj") and ids[0] == recorded.tokenizer.bos_token_id:
        ids = ids[1:]
    return tuple(ids[1:] if word else ids)


def prompts_of(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the prompts of a CounterFact record, the subject filled in."""
    rewrite = record["requested_rewrite"]
    return {
        "rewrite": [rewrite["prompt"].replace(SLOT, rewrite["subject"])],
        **{kind: record[f"{kind}_prompts"] for kind in KINDS[1:]},
    }


def check_counterfact(
    recorded: Recorded, kind: str, what: str, variant: str, expected: Records
) -> None:
    """NLLs of both targets, and whether every token of the right one is the argmax."""
    records = recorded.inputs("cf_records")
    for record, told in zip(records, expected, strict=True):
        targets = [
            record["requested_rewrite"][name]["str"] for name in ("target_new", "target_true")
        ]
        for asked, prompts in prompts_of(record).items():
            rows = [counterfact_row(recorded, variant, p, t) for p in prompts for t in targets]
            found = score_token_rows(recorded.model, rows)
            new, true = found[::2], found[1::2]
            where = f"{what}, case {record['case_id']}, {asked}"
            for name, ours in (("target_new", new), ("target_true", true)):
                theirs = [nll[name] for nll in told[f"{asked}_prompts_probs"]]
                for one, other in zip(ours, theirs, strict=True):
                    hold(recorded, kind, f"{where} {name}", one.nll, other, floor=1.0)
            right = true if asked == "neighborhood" else new
            hits = [one.likeliest for one in right]
            assert hits == told[f"{asked}_prompts_correct"], (recorded.name, where, hits)


def check_zsre(
    recorded: Recorded, what: str, variant: str, records: Records, expected: Records
) -> None:
    """Token by token: one prompt for each beginning of the target."""
    for record, told in zip(records, expected, strict=True):
        rewrite, tokenizer = record["requested_rewrite"], recorded.tokenizer
        ids = target_ids(recorded, variant, rewrite["target_new"]["str"])
        gap = " " if joins_with_space(recorded, variant) else ""
        for asked, prompts in list(prompts_of(record).items())[:2]:
            steps = [
                (
                    prompt + (gap if i else "") + tokenizer.decode(ids[:i]),
                    tokenizer.decode([ids[i]]),
                )
                for prompt in prompts
                for i in range(len(ids))
            ]
            hits = [token_hit(recorded, variant, *step) for step in steps]
            assert hits == told[f"{asked}_prompts_correct"], (recorded.name, what, asked, hits)
        asides = [(aside["prompt"], aside["target"]) for aside in record["neighborhood_prompts"]]
        hits = [token_hit(recorded, variant, *aside) for aside in asides]
        assert hits == told["neighborhood_prompts_correct"], (recorded.name, what, hits)


def joins_with_space(recorded: Recorded, variant: str) -> bool:
    """Whether a variant puts a space of its own before a target's beginning (L4)."""
    return variant == "alphaedit_repo" or by_text(recorded)


def by_text(recorded: Recorded) -> bool:
    """Whether tokens are compared as text, which the fork does for Llama-2's tokenizer."""
    ids = recorded.tokenizer(" a", add_special_tokens=False)["input_ids"]
    return has_lone_word(recorded.tokenizer, ids)


def token_hit(recorded: Recorded, variant: str, prompt: str, target: str) -> bool:
    """Whether the argmax after a prompt is the first id of a re-encoded target token."""
    tokenizer = recorded.tokenizer
    if by_text(recorded):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            said = recorded.model(input_ids=ids).logits[0, -1].argmax()
        return bool(tokenizer.decode(said.item()).strip().lower() == target.strip().lower())
    special = variant != "bos_fixed"
    wanted = tokenizer(target, add_special_tokens=special)["input_ids"]
    first = wanted[1 if variant == "alphaedit_repo" else 0]
    row = TokenRow(tuple(tokenizer(prompt)["input_ids"]), 0, (first,))
    (found,) = score_token_rows(recorded.model, [row])
    return found.likeliest


def plain_likelihood(recorded: Recorded, prompt: str, answer: str) -> Likelihood:
    """Score an answer by one full forward pass, prompt and answer encoded together."""
    start = len(encode(recorded.tokenizer, prompt).ids)
    ids = torch.tensor([encode(recorded.tokenizer, prompt + answer).ids])
    with torch.no_grad():
        says = recorded.model(input_ids=ids).logits[0].double().log_softmax(-1)
    steps = range(start, ids.shape[1])
    hits = tuple(int(says[i - 1].argmax()) == int(ids[0, i]) for i in steps)
    nll = -sum(float(says[i - 1, ids[0, i]]) for i in steps) / len(steps)
    return Likelihood(nll, all(hits), hits)
