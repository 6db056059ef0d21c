"""Positions and targets with the tokenizers of GPT-2, GPT-NeoX and Mistral on CounterFact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errata.data.request import EditRequest
from errata.data.request_files import read_requests
from errata.methods.closed_form.rewrite import rewrite_of
from errata.models.tokens import encode, position_of, split_target
from plain import position

NAMES = ("gpt2", "gpt_neox_20b", "mistral_v1")
WHERE = ("subject_first", "subject_last", "subject_first_after_last", "last")
PREFIXES = ("Therefore, it is so. ", "The\nfirst line of a text. ")


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, errata_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(errata_data / "tokenizers" / request.param)


@pytest.fixture(scope="module")
def requests(errata_data: Path) -> list[EditRequest]:
    return read_requests(errata_data / "counterfact_full.json")


def test_every_record_is_read(errata_data: Path, requests: list[EditRequest]) -> None:
    records = json.loads((errata_data / "counterfact_full.json").read_text())
    for record, request in zip(records, requests, strict=True):
        rewrite = record["requested_rewrite"]
        assert request.text == rewrite["prompt"].format(rewrite["subject"]).rstrip()
        assert request.target == rewrite["target_new"]["str"]
        assert request.id == record["case_id"]


def test_flat_records_are_read(errata_data: Path) -> None:
    flat = read_requests(errata_data / "counterfact_flat.json")
    records = json.loads((errata_data / "counterfact_flat.json").read_text())
    for record, request in zip(records, flat, strict=True):
        assert request.text == record["prompt"].rstrip()
        assert request.target == record["target_new"].strip()


def test_positions_are_the_tokenizers_own(
    tokenizer: PreTrainedTokenizerBase, requests: list[EditRequest]
) -> None:
    for request in requests:
        encoded = encode(tokenizer, request.text)
        for where in WHERE:
            theirs = position(tokenizer, request.text, request.span, where)
            assert position_of(encoded, request.span, where) == theirs, (request.text, where)


def test_targets_follow_the_prompts_own_tokens(
    tokenizer: PreTrainedTokenizerBase, requests: list[EditRequest]
) -> None:
    for request in requests:
        prompt, target = split_target(tokenizer, request.text, request.answer)
        assert prompt == tuple(tokenizer(request.text)["input_ids"])
        whole = tokenizer.decode(prompt + target, skip_special_tokens=True)
        assert whole.strip() == (request.text + request.answer).strip()
        assert prompt + target == tuple(tokenizer(request.text + request.answer)["input_ids"])


def test_rows_end_in_the_subject_where_they_are_cut(
    tokenizer: PreTrainedTokenizerBase, requests: list[EditRequest]
) -> None:
    for request in requests[:100]:
        rewrite = rewrite_of(
            tokenizer,
            request,
            PREFIXES,
            where="subject_last",
            essence_prompt="{} is a",
            mean_by_type=True,
        )
        for row in (*rewrite.rows, rewrite.essence):
            read = tokenizer.decode(row.key.ids, skip_special_tokens=True)
            assert request.subject in read, (request.subject, read)
            if row is not rewrite.essence:
                end = request.span[1]
                assert len(read) - len(read.rsplit(request.text[:end], 1)[0]) >= end


def test_a_bos_is_there_exactly_where_the_tokenizer_sets_one(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    first = encode(tokenizer, "Angola is located in").ids[0]
    assert (first == tokenizer.bos_token_id) == ("mistral" in str(tokenizer.name_or_path))
