"""Where a real model stores facts: at the subject in earlier MLPs, then at the last token.

The sites of ROME's figure 1 (arXiv 2202.05262), not its numbers.
"""

from __future__ import annotations

import pytest

from errata.data.common_facts import RELATIONS, Fact, cases_of
from errata.experiments.trace_run import ask, noise_level
from errata.patches.edited_model import EditedModel
from errata.tracing.causal import trace_question
from errata.tracing.settings import TraceSettings

pytestmark = pytest.mark.real
SETTINGS = TraceSettings(kinds=("mlp", "attn"), samples=3)


@pytest.mark.parametrize("relation", [0, 1], ids=["city", "capital"])
def test_mlps_at_the_subject_come_before_attention_at_the_last_token(
    relation: int, edited: EditedModel, known: list[Fact]
) -> None:
    fact, case = next(
        (fact, case) for fact, case in cases_of(known) if fact.relation is RELATIONS[relation]
    )
    request = case.request
    question = ask(edited, request.text, request.span, request.separator + fact.answer)
    level, _ = noise_level(edited, SETTINGS, [fact.subject])
    trace = trace_question(edited.model, edited.tokenizer, question, SETTINGS, level)
    assert trace.known
    site = {}
    for kind in trace.kinds:
        effect = trace.effect(kind)
        place, block = divmod(int(effect.argmax()), trace.blocks)
        assert effect.max() > 0.1 * trace.total_effect
        site[kind] = trace.places[place], block
    start, end = trace.subject
    (mlp_place, mlp_block), (attn_place, attn_block) = site["mlp"], site["attn"]
    assert start <= mlp_place < end, (trace.tokens[mlp_place], site)
    assert mlp_block < trace.blocks / 2, site
    assert attn_place == len(trace.tokens) - 1, (trace.tokens[attn_place], site)
    assert attn_block > mlp_block, site
