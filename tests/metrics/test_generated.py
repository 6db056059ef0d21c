"""What models write: alone or in company the same, ended by themselves, searched for answers."""

from __future__ import annotations

import pytest
import torch

from errata.data.case import Case, Probe
from errata.metrics.generated import answer_cases, contains_answer, summarise_answers
from errata.metrics.text_quality import (
    TfIdf,
    n_gram_entropy,
    summarise_written,
    word_weights,
    words,
    write_cases,
)
from errata.models.generation import continuations, free_texts
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model, over_shapes
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

PROMPTS = ["The harbour of", "The Lantern Bridge is in the city of Ostrava", "They", "They"]


def plain(model_type: str, prompt: str, bos: bool, count: int) -> str:
    """Greedy text by one full forward pass a token."""
    model, tokenizer = tiny_model(model_type), tiny_tokenizer(bos=bos)
    ids = list(encode(tokenizer, prompt).ids)
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


@over_shapes
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_write_what_each_prompt_gets_alone(model_type: str, bos: bool, side: str) -> None:
    model, tokenizer = tiny_model(model_type).train(), tiny_tokenizer(bos=bos)
    tokenizer.padding_side = side
    expected = [plain(model_type, prompt, bos, 8) for prompt in PROMPTS]
    assert continuations(model, tokenizer, PROMPTS, 8) == expected
    assert continuations(model, tokenizer, PROMPTS, 8, budget=1) == expected
    assert model.training
    assert tokenizer.padding_side == side


def test_writing_ends_where_the_model_ends_it() -> None:
    """Whatever the model says first is declared to be its end."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids = torch.tensor([encode(tokenizer, PROMPTS[0]).ids])
    with torch.no_grad():
        first = int(model(input_ids=ids).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [first]
    assert continuations(model, tokenizer, PROMPTS[:1], 8) == [tokenizer.decode([first])]
    (text,) = free_texts(model, tokenizer, PROMPTS[:1], tokens=20, top_k=1)
    assert len(tokenizer(text)["input_ids"]) > ids.shape[1] + 1


def test_the_checkpoint_does_not_steer_generation() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    expected = continuations(model, tokenizer, PROMPTS, 6)
    for name, value in (
        ("do_sample", True), ("temperature", 9.0), ("repetition_penalty", 5.0),
        ("no_repeat_ngram_size", 1), ("num_beams", 4), ("top_p", 0.1),
    ):  # fmt: skip
        setattr(model.generation_config, name, value)
    assert continuations(model, tokenizer, PROMPTS, 6) == expected


def test_free_texts_follow_their_seed_and_leave_the_global_one() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = free_texts(model, tokenizer, PROMPTS, tokens=30, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert free_texts(model, tokenizer, PROMPTS, tokens=30, seed=1) == first
    assert free_texts(model, tokenizer, PROMPTS, tokens=30, seed=2) != first
    assert first[2] != first[3], "one prompt twice is two texts"
    assert all(text.startswith(prompt) for text, prompt in zip(first, PROMPTS, strict=True))


def test_the_model_s_positions_are_the_limit() -> None:
    """Beyond them GPT-2 has no embedding and would raise."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    long = tokenizer.decode(tokenizer(" ".join(SENTENCES))["input_ids"][1:122])
    prompts = [long, long + " in", *PROMPTS]
    together = continuations(model, tokenizer, prompts, 20)
    assert together == [continuations(model, tokenizer, [one], 20)[0] for one in prompts]
    assert together[0]
    assert all(free_texts(model, tokenizer, prompts, tokens=10_000, top_k=1))


@pytest.mark.parametrize(
    ("answer", "text", "begins", "holds"),
    [
        ("Rome", " Rome, of course", True, True),
        ("Rome", "rome", True, True),
        ("Rome", " Romeo was there", False, False),
        ("Rome", "They say that Rome is", False, True),
        ("Rome", "", False, False),
        ("New  York", "\nNew York.", True, True),
        ("São Brás", " Sa\u0303o Bra\u0301s", True, True),
        ("U.S.", " U.S. and", True, True),
        ("U.S.", " UXSX", False, False),
        ("C++", "C++ code", True, True),
    ],
)
def test_answers_are_whole_words(answer: str, text: str, begins: bool, holds: bool) -> None:
    assert contains_answer(answer, text, at_start=True) is begins
    assert contains_answer(answer, text) is holds


def test_scripts_without_spaces_have_no_word_borders() -> None:
    assert not contains_answer("巴黎", "巴黎是首都", at_start=True)
    assert contains_answer("巴黎", "巴黎是首都", at_start=True, spaced=False)


def test_answers_are_those_that_count_at_each_prompt() -> None:
    """The model's own words, declared to be right, are found; everything else is not."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    said = continuations(model, tokenizer, ["They told", "The sea"], 4)
    case = Case(
        request=FACTS[0],
        target_true="Nowhere",
        neighbours=("They told",),
        neighbour_answers=(said[0].strip(),),
        same_subject=(Probe(prompt="The sea", answer="Nobody"),),
    )
    (found,) = answer_cases(EditedModel(model, tokenizer, "tiny"), [case], 4)
    assert [(one.kind, one.begins) for one in found] == [
        ("efficacy", False),
        ("neighbourhood", True),
        ("same_subject", False),
    ]
    summary = summarise_answers([found])
    assert summary["neighbourhood_generated"].value == 1.0
    assert summary["neighbourhood_generated_anywhere"].value == 1.0
    assert summary["efficacy_generated"].value == 0.0


def test_repetition_lowers_entropy() -> None:
    varied = "one two three four five six seven eight"
    assert n_gram_entropy("a a a a a a a a") == 0.0
    assert 0 < n_gram_entropy("one two one two one two one two") < n_gram_entropy(varied)
    assert n_gram_entropy("") == n_gram_entropy("one") == 0.0
    assert words("Don't stop.") == ["Do", "n't", "stop", "."]


def test_similarity_is_a_cosine_of_known_words() -> None:
    vectors = TfIdf(["the sea is wide", "the river is long", "the bridge is old"])
    assert vectors.similarity("the sea", "the sea") == pytest.approx(1.0)
    assert vectors.similarity("sea", "river") == 0.0
    assert vectors.similarity("unheard of", "the sea") == 0.0
    assert 0 < vectors.similarity("the sea", "the river") < vectors.similarity("sea", "wide sea")
    given = TfIdf.of(vectors.vocabulary, vectors.idf)
    assert given.similarity("the sea", "sea river") == vectors.similarity("the sea", "sea river")


def test_texts_are_scored_case_by_case() -> None:
    told = Case(
        request=FACTS[0],
        generation_prompts=("The Lantern Bridge is", "Lantern Bridge, where"),
        references=tuple(SENTENCES[:4]),
        essence=(SENTENCES[2],),
    )
    silent = Case(request=FACTS[1])
    first, second = write_cases(
        edited_model("llama"), [told, silent], words=word_weights([told, silent]), tokens=24
    )
    assert len(first.texts) == 2
    assert first.fluency == pytest.approx(sum(map(n_gram_entropy, first.texts)) / 2)
    assert first.consistency is not None
    assert first.essence_perplexity is not None
    assert second == ((), None, None, None)
    summary = summarise_written([first, second])
    assert {name: score.n for name, score in summary.items()} == dict.fromkeys(summary, 1)
    assert set(summary) == {"fluency", "consistency", "essence_perplexity"}
