"""Tokens: positions and targets are right for any text, by asking the tokenizer alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from errata.core.errors import ErrataError
from errata.data.request import EditRequest
from errata.methods.closed_form.rewrite import Rewrite, rewrite_of
from errata.models.tokens import batches_by_length, encode, pad_right, position_of, split_target
from plain import position
from tiny import tiny_tokenizer

TOKENIZERS = {bos: tiny_tokenizer(bos=bos) for bos in (True, False)}
WHERE = ("subject_first", "subject_last", "subject_first_after_last", "last")
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="{}<>"),
    min_size=1,
    max_size=12,
)
subjects = words.map(str.strip).filter(bool)
over_bos = pytest.mark.parametrize("bos", [True, False], ids=["bos", "no_bos"])
SOME = settings(max_examples=60, deadline=None)


def request(prompt: str, subject: str, target: str = "Rome", separator: str = " ") -> EditRequest:
    return EditRequest(prompt=prompt, subject=subject, target=target, separator=separator)


def rewrite(asked: EditRequest, *prefixes: str, bos: bool = True, by_type: bool = True) -> Rewrite:
    return rewrite_of(
        TOKENIZERS[bos],
        asked,
        prefixes,
        where="subject_last",
        essence_prompt="{} is a",
        mean_by_type=by_type,
    )


@over_bos
@SOME
@given(before=words, subject=subjects, after=words)
def test_the_subjects_ends_are_covered(bos: bool, before: str, subject: str, after: str) -> None:
    tokenizer, text = TOKENIZERS[bos], f"{before} {subject} {after}"
    start = len(before) + 1
    span = (start, start + len(subject))
    encoded = encode(tokenizer, text)
    first = position_of(encoded, span, "subject_first")
    last = position_of(encoded, span, "subject_last")
    assert encoded.offsets[first][0] <= span[0] < encoded.offsets[first][1]
    assert encoded.offsets[last][0] <= span[1] - 1 < encoded.offsets[last][1]
    following = position_of(encoded, span, "subject_first_after_last")
    assert following == last + 1
    assert encoded.offsets[following][0] >= encoded.offsets[last][0]
    assert position_of(encoded, span, "last") == len(encoded.ids) - 1


@over_bos
@pytest.mark.parametrize("where", WHERE)
@SOME
@given(subject=subjects.filter(str.isascii), after=words)
def test_positions_are_the_tokenizers_own(bos: bool, where: str, subject: str, after: str) -> None:
    text, span = f"The {subject} {after}", (4, 4 + len(subject))
    found = position_of(encode(TOKENIZERS[bos], text), span, where)
    assert found == position(TOKENIZERS[bos], text, span, where)


@over_bos
def test_a_subject_at_the_very_start_and_at_the_very_end(bos: bool) -> None:
    encoded = encode(TOKENIZERS[bos], "Velmora")
    last = len(encoded.ids) - 1
    assert position_of(encoded, (0, 7), "subject_first") == int(bos)
    assert position_of(encoded, (0, 7), "subject_last") == last
    assert position_of(encoded, (0, 7), "subject_first_after_last") == last


@over_bos
@SOME
@given(text=words, answer=words.map(str.strip).filter(bool))
def test_the_prompt_keeps_its_tokens_and_the_answer_reads_back(
    bos: bool, text: str, answer: str
) -> None:
    tokenizer = TOKENIZERS[bos]
    prompt, target = split_target(tokenizer, text, f" {answer}")
    assert prompt == encode(tokenizer, text).ids
    assert len(target) > 0
    whole = tokenizer.decode(prompt + target, skip_special_tokens=True)
    assert whole == f"{text} {answer}"


@over_bos
@pytest.mark.parametrize("answer", ["e", "e old house of the sea"])
def test_a_target_that_merges_with_the_prompt_is_taken_alone(bos: bool, answer: str) -> None:
    tokenizer, text = TOKENIZERS[bos], "Every boat goes to th"
    alone, joint = encode(tokenizer, text).ids, encode(tokenizer, text + answer).ids
    assert joint[: len(alone)] != alone, "these two merge"
    prompt, target = split_target(tokenizer, text, answer)
    assert prompt == alone
    assert tokenizer.decode(target) == answer
    row = rewrite(request("Every {} goes to th", "boat", answer, ""), bos=bos).rows[0]
    assert row.ids == alone + target[:-1]
    assert row.targets == target


@over_bos
@pytest.mark.parametrize(
    "first", ["Pell is the capital, and {} was", "{} is the capital, and Pell was"]
)
def test_a_subject_that_occurs_twice_is_taken_where_its_slot_is(bos: bool, first: str) -> None:
    asked = request(first, "Pell")
    row = rewrite(asked, bos=bos).rows[0]
    encoded = encode(TOKENIZERS[bos], asked.text)
    left, right = encoded.offsets[row.position]
    assert left < asked.span[1] <= right
    assert asked.text[slice(*asked.span)] == "Pell"


@over_bos
def test_rows_hold_prefix_prompt_and_target_but_its_last_token(bos: bool) -> None:
    tokenizer, asked = (
        TOKENIZERS[bos],
        request("The {} is in the city of", "Lantern Bridge", "Quenby"),
    )
    made = rewrite(asked, "Well. ", "So they say. ", bos=bos)
    for prefix, row in zip(("", "Well. ", "So they say. "), made.rows, strict=True):
        whole = encode(tokenizer, prefix + asked.text + asked.answer).ids
        assert row.ids == whole[:-1]
        assert row.targets == whole[-len(row.targets) :]
        assert tokenizer.decode(row.targets) == " Quenby"
        before = tokenizer.decode(row.ids[: row.position + 1], skip_special_tokens=True)
        assert before == f"{prefix}The Lantern Bridge"
        assert row.key.ids == row.ids[: row.position + 1]
    essence = tokenizer.decode(made.essence.ids, skip_special_tokens=True)
    assert essence == "Lantern Bridge"


def test_the_bare_prompt_weighs_as_the_method_says() -> None:
    asked = request("The {} is in", "Lantern Bridge")
    by_type, flat = rewrite(asked, "A. ", "B. "), rewrite(asked, "A. ", "B. ", by_type=False)
    rows = tuple(row.key for row in by_type.rows)
    assert by_type.keys == (rows[:1], rows[1:])
    assert flat.keys == (rows,)
    assert rewrite(asked).keys == ((rows[0],),)


def ends_with_eos() -> PreTrainedTokenizerBase:
    """Return a tokenizer that puts a special token at both ends, as some encoders do."""
    tokenizer = Tokenizer.from_str(TOKENIZERS[False].backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <s>", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def test_a_text_to_be_continued_has_no_special_tokens_at_its_end() -> None:
    assert encode(ends_with_eos(), "The sea").ids == encode(TOKENIZERS[True], "The sea").ids
    assert split_target(ends_with_eos(), "The sea", " is") == split_target(
        TOKENIZERS[True], "The sea", " is"
    )


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(ErrataError, match="Slow has no character offsets"):
        encode(Slow(), "The sea")


def test_an_answer_without_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("aesth. ")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    deaf = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(ErrataError, match="no tokens for the answer ' ЖЖ'"):
        split_target(deaf, "the sea", " ЖЖ")
    with pytest.raises(ErrataError, match="no token for the characters"):
        position_of(encode(deaf, "the ЖЖ sea"), (4, 6), "subject_last")


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), budget=st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    order = [(lengths[i], i) for batch in batches for i in batch]
    assert order == sorted(order)


def test_padding_is_on_the_right() -> None:
    padded = pad_right([(1, 2, 3), (4,)], "cpu", fill=9)  # type: ignore[arg-type]
    assert padded.tolist() == [[1, 2, 3], [4, 9, 9]]
