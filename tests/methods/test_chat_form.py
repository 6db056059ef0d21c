"""Requests and prompts in the tokenizer's chat template: the same as the rendered text by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.request import EditRequest
from errata.experiments.eval_run import evaluate_model
from errata.methods import METHODS
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.rewrite import encode_requests
from errata.methods.edit import compute_edit
from errata.metrics.base import EvalSettings
from errata.metrics.likelihood import answer_row
from errata.metrics.teacher_forced import score_cases
from errata.patches.base import Edit, load_edit
from errata.patches.chat_form import ChatForm
from errata.patches.edited_model import EditedModel
from errata.patches.prompt_patch import PromptPatch
from errata.patches.weight_patch import WeightPatch
from laws.bench import edited_model, moments_of
from laws.kinds import provenance
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}\n{% endfor %}"
    "<assistant>{% if loud %}!{% endif %}"
)
PREFIXES = ("The sea. ", "A hill. ")
STATEMENT = FACTS[0]
QUESTION = EditRequest(prompt="Where is {}?", subject="Pell", target="Tarn", separator=" ")
ASKED = [STATEMENT, QUESTION]


def chatty(dtype: torch.dtype = torch.float64) -> EditedModel:
    edited = edited_model("llama", dtype=dtype)
    edited.tokenizer.chat_template = CHAT
    return edited


def by_hand(request: EditRequest) -> EditRequest:
    """The request as the text that the model reads in the chat; the last subject has the slot."""
    said = request.text
    head = f"<user>{said}\n<assistant>"
    if said.endswith("?"):
        return EditRequest(
            prompt=f"<user>{request.prompt}\n<assistant>",
            subject=request.subject,
            target=request.target,
            separator="",
        )
    return request.with_values(prompt=head + request.prompt)


def method_of(name: str = "memit", **contexts: object) -> ClosedForm:
    settings = {"blocks": [1], "search": {"steps": 3, "stop_at": 0, "kl_weight": 0}}
    found = METHODS[name].of({**settings, "contexts": {"prefixes": [], **contexts}})
    assert isinstance(found, ClosedForm)
    return found


@pytest.mark.parametrize("request_", ASKED, ids=["statement", "question"])
@pytest.mark.parametrize(
    "form", [ChatForm(), ChatForm("Be brief."), ChatForm(None, (("loud", 1),))]
)
def test_the_place_of_a_prompt_in_the_template(request_: EditRequest, form: ChatForm) -> None:
    tokenizer = chatty().tokenizer
    text = form.render(request_.text, tokenizer)
    start = form.offset(request_.text, tokenizer)
    assert text[start : start + len(request_.text)] == request_.text
    assert text.rindex(request_.text) == start
    assert text.count(request_.text) == (1 if request_ is QUESTION else 2)
    assert (form.system is None) == ("<system>" not in text)
    assert ("!" in text) == bool(form.arguments)
    assert form.following(request_.text, " Tarn") == ("Tarn" if request_ is QUESTION else " Tarn")


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_an_edit_in_a_chat_is_that_of_the_text_that_the_model_reads(name: str) -> None:
    edited = chatty()
    for request in ASKED:
        ours = compute_edit(
            edited, [request], method_of(name, template="chat"), moments=moments_of("llama")
        )
        hand = compute_edit(
            edited, [by_hand(request)], method_of(name), moments=moments_of("llama")
        )
        plain = compute_edit(edited, [request], method_of(name), moments=moments_of("llama"))
        assert isinstance(ours, WeightPatch)
        assert isinstance(hand, WeightPatch)
        assert isinstance(plain, WeightPatch)
        assert same(ours, hand)
        assert not same(ours, plain)
        assert ours.provenance.requests[0] == request
        assert ours.provenance.settings["contexts"]["template"] == "chat"
        assert "template" not in plain.provenance.settings["contexts"]


def same(one: Edit, other: Edit) -> bool:
    assert isinstance(one, WeightPatch)
    assert isinstance(other, WeightPatch)
    pairs = [(update.delta(), other.updates[name].delta()) for name, update in one.updates.items()]
    return all(bool((a - b).norm() <= 1e-6 * b.norm()) for a, b in pairs)


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_both_forms_are_rows_of_one_request(name: str) -> None:
    edited = chatty()
    both, plain, chat = (
        encode_requests(method_of(name, template=template), edited, ASKED, prefixes)
        for template, prefixes in (("both", PREFIXES), ("none", PREFIXES), ("chat", ()))
    )
    for all_rows, text, message in zip(both, plain, chat, strict=True):
        assert all_rows.rows == text.rows + message.rows
        assert all_rows.essence == text.essence
        groups = [len(group) for group in all_rows.keys]
        assert groups == ([1, 2, 1] if name == "memit" else [4])
        assert [row for group in all_rows.keys for row in group] == [
            row.key for row in all_rows.rows
        ]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_are_scored_in_the_chat(system: str | None) -> None:
    edited = chatty()
    cases = [Case(request=each, paraphrases=("Is it so?", "It is")) for each in ASKED]
    asking = EvalSettings(template="chat", system=system)
    found = evaluate_model(edited, cases, asking).after.scores
    head = "" if system is None else f"<system>{system}\n"
    for case, scores in zip(cases, found, strict=True):
        for score in scores:
            asked = score.prompt.endswith("?")
            text = f"{head}<user>{score.prompt}\n<assistant>" + ("" if asked else score.prompt)
            answer = case.request.answer.lstrip() if asked else case.request.answer
            row = answer_row(edited.tokenizer, text, answer)
            ids = torch.tensor([row.ids])
            with torch.no_grad():
                logits = edited.model(input_ids=ids).logits[0].double().log_softmax(-1)
            tail = logits[len(row.ids) - len(row.targets) :]
            nll = -tail[range(len(row.targets)), list(row.targets)].mean()
            assert score.new.nll == pytest.approx(float(nll), rel=1e-5)
    assert edited.chat is None
    assert found != score_cases(edited, cases)


def test_text_around_the_prompt_is_part_of_the_message() -> None:
    """The message is the patched prompt, which also decides whether it is a question."""
    edited = chatty()
    edited.apply(PromptPatch("Say {prompt}: yes?", provenance(edited)))
    with edited.asked(ChatForm()):
        assert edited.rendered("it is") == "<user>Say it is: yes?\n<assistant>"
        assert edited.following("it is", " Tarn") == "Tarn"
        start, end = edited.rendered_span("it is", (0, 2))
        assert edited.rendered("it is")[start:end] == "it"


def test_a_system_message_without_a_chat_is_refused() -> None:
    for template in (None, "none"):
        with pytest.raises(ErrataError, match="a system message needs a template"):
            method_of(template=template, system="Be brief.")
        with pytest.raises(ErrataError, match="a system message needs template: chat"):
            EvalSettings.of({"template": template, "system": "Be brief."})


def test_a_model_without_a_template_is_told_so() -> None:
    edited = edited_model("llama")
    with pytest.raises(ErrataError, match="no chat template"):
        compute_edit(edited, [STATEMENT], method_of(template="chat"), moments=moments_of("llama"))
    edited.tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ErrataError, match="no system message"):
        ChatForm("Be brief.").render("It is", edited.tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].content | upper }}<assistant>",
        "{{ messages[7].content }}",
        "{% if %}",
    ],
)
def test_a_template_that_cannot_be_used_leaves_plain_text(template: str) -> None:
    edited = edited_model("llama")
    edited.tokenizer.chat_template = template
    assert not ChatForm().is_usable(edited.tokenizer)
    method = method_of(template="auto")
    assert method.forms(edited) == [None]
    edited.tokenizer.chat_template = CHAT
    assert ChatForm().is_usable(edited.tokenizer)
    assert method.forms(edited) == [None, ChatForm()]


@pytest.fixture
def pico(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model on disk with a chat template, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", "cache")
    folder = tmp_path / "pico"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    Path("text.txt").write_text("\n".join(SENTENCES * 2), encoding="utf-8")
    return str(folder)


def told(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


QUICK = ("--corpus", "text.txt", "--blocks", "1", "--steps", "2", "--prefix-lengths", "2")


def test_the_table_of_an_edit_has_a_row_in_chat(pico: str) -> None:
    fact = ("edit", pico, STATEMENT.marked, STATEMENT.target, *QUICK)
    kinds = {
        template: [row["kind"] for row in told(*fact, "--template", template)["answers"]]  # type: ignore[attr-defined]
        for template in ("none", "both", "chat")
    }
    assert kinds == {"none": ["fact", "in chat"], "both": ["fact", "in chat"], "chat": ["fact"]}
    plain = CliRunner().invoke(app, [*fact, "--template", "none"], catch_exceptions=False).output
    assert "--template both" in plain
    (patch,) = told(*fact)["patches"]  # type: ignore[misc]
    contexts = load_edit(patch).provenance.settings["contexts"]
    assert contexts["template"] == "both"


def test_eval_and_chat_use_the_template(pico: str) -> None:
    Path("cases.jsonl").write_text(Case(request=STATEMENT).model_dump_json())
    call = ("eval", pico, "--dataset", "cases.jsonl", "--results")
    for template in ("none", "chat"):
        told(*call, template, "--template", template)
    read = [json.loads(path.read_text()) for path in sorted(Path().glob("*/eval/*/cases.jsonl"))]
    nll = [record["after"][0]["new"]["nll"] for record in read]
    assert len(set(nll)) == 2
    call = call[:-1]
    asked = ("chat", pico, "-p", "Where is it?", "--max-new-tokens", "4")
    said = told(*asked)["answers"]
    assert said == told(*asked, "--template", "chat")["answers"]
    assert said == told(*asked, "--conversation")["answers"]
    assert said != told(*asked, "--template", "none")["answers"]
    wrong = CliRunner().invoke(app, [*call, "--template", "alpaca"])
    assert wrong.exit_code == 1
    assert "template: Input should be 'none' or 'chat' (got 'alpaca')" in str(wrong.exception)
