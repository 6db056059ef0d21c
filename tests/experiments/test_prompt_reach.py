"""A prompt patch acts wherever a prompt is asked, and whatever it does not act on says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.data.case import Case
from errata.data.instructions import Instruction
from errata.data.passages import Passage
from errata.experiments.conversation import Speaker
from errata.experiments.task_run import HARNESS_TEXTS
from errata.experiments.trace_run import ask, trace_cases
from errata.experiments.tuning_run import run_tuning
from errata.metrics import tasks
from errata.metrics.likelihood import likelihoods
from errata.metrics.perplexity import read_texts
from errata.metrics.prompts import inactive_note
from errata.metrics.tasks import Task, answer_rows
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from errata.patches.prompt_patch import PromptPatch
from errata.tracing.question import ask_model
from errata.tracing.settings import TraceSettings
from errata.tracing.trace import Trace
from laws.bench import edited_model
from laws.kinds import fact_before, provenance
from tiny import FACTS, SENTENCES
from tuning.pico import ROWS, pico_on_disk, quick

CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
FACT = FACTS[1]


def two_patches(edited: EditedModel) -> tuple[PromptPatch, PromptPatch]:
    return fact_before(edited), PromptPatch("Well, {prompt} so", provenance(edited))


def patched() -> EditedModel:
    edited = edited_model("llama")
    for patch in two_patches(edited):
        edited.apply(patch)
    return edited


def test_generated_answers_to_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    edited, asked = patched(), list[str]()
    task = Task("quiz", (Instruction(instruction="Say it", input="now", output="x"),))
    real = tasks.continuations

    def spy(model: Any, tokenizer: Any, prompts: list[str], *rest: Any, **more: Any) -> list[str]:
        asked.extend(prompts)
        return real(model, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(tasks, "continuations", spy)
    (plain,) = answer_rows(edited, task, "plain", max_new_tokens=8)
    edited.tokenizer.chat_template = CHAT
    answer_rows(edited, task, "chat", max_new_tokens=2)
    assert asked[0] == edited.rendered("Say it now")
    message = edited.rendered("Say it\n\nnow")
    assert asked[1] == f"<user>{message}<assistant>"
    with edited.without_patches():
        (bare,) = answer_rows(edited, task, "plain", max_new_tokens=8)
    assert bare.text != plain.text


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_first_message_of_a_conversation(template: str | None) -> None:
    """Later messages are plain: the first stays in the history, and with it what was added."""
    edited = patched()
    edited.tokenizer.chat_template = template
    speaker, bare = Speaker("after", edited), Speaker("before", edited, plain=True)
    first, without = (each.reply("Where is Velmora?", 4) for each in (speaker, bare))
    second, unpatched = (each.reply("And Tarn?", 4) for each in (speaker, bare))
    assert (first, second) != (without, unpatched)
    assert speaker.turns[0]["content"] == "Where is Velmora?"
    told, answer = edited.rendered("Where is Velmora?"), speaker.turns[1]["content"]
    history = (
        f"<user>{told}<assistant>{answer}<user>And Tarn?<assistant>"
        if template
        else f"User: {told}\nAssistant: {answer}\nUser: And Tarn?\nAssistant:"
    )
    with edited.without_patches():
        assert second.strip().startswith(edited.generate(history, 4).split("\nUser:")[0].strip())


def test_scores_of_edited_facts_after_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fact is rendered, once, before tuning and after it."""
    edited = pico_on_disk(tmp_path / "model")
    patch, asked = fact_before(edited), list[str]()
    edited.apply(patch)
    real = likelihoods.__globals__["answer_row"]

    def spy(tokenizer: Any, prompt: str, answer: str) -> Any:
        asked.append(prompt)
        return real(tokenizer, prompt, answer)

    monkeypatch.setattr("errata.metrics.likelihood.answer_row", spy)
    run_tuning(edited, ROWS, quick(max_steps=1), tmp_path)
    assert asked == [patch.render(FACTS[0].text)] * 2


def test_texts_are_no_prompts_and_this_is_reported() -> None:
    edited = patched()
    note = inactive_note(edited, "texts")
    assert note == "2 prompt patches do not act on texts, which are not prompts"
    with edited.without_patches():
        assert inactive_note(edited, "texts") is None
        before = read_texts(edited, [Passage(SENTENCES[0], 9, 50)])
    assert read_texts(edited, [Passage(SENTENCES[0], 9, 50)]) == before


def test_a_question_has_its_positions_in_the_rendered_prompt() -> None:
    edited = patched()
    question = ask(edited, FACT.text, FACT.span, FACT.answer)
    first, second = two_patches(edited_model("llama"))
    assert question.text == second.render(first.render(FACT.text))
    start, end = question.subject
    offsets = encode(edited.tokenizer, question.text).offsets
    place = question.text.rindex(FACT.subject)
    assert offsets[start][0] <= place < offsets[start][1]
    assert offsets[end - 1][0] < place + len(FACT.subject) <= offsets[end - 1][1]
    with edited.without_patches():
        bare = ask(edited, FACT.text, FACT.span, FACT.answer)
    assert bare == ask_model(edited.model, edited.tokenizer, FACT.text, FACT.span, FACT.answer)


def test_a_trace_corrupts_the_subject_of_the_rendered_prompt(tmp_path: Path) -> None:
    edited, settings = patched(), TraceSettings(samples=2, kinds=("hidden",))
    with edited.without_patches():
        unedited = ask(edited, FACT.text, FACT.span)
    question = ask(edited, FACT.text, FACT.span)
    said = edited.tokenizer.decode(question.targets)
    case = Case(request=FACT.with_values(separator=""), target_true=said)
    run = trace_cases(edited, [case], settings, 0.5, tmp_path)
    (trace,) = run.traces
    assert isinstance(trace, Trace)
    assert (trace.text, trace.subject) == (question.text, question.subject)
    assert len(trace.tokens) == question.length > unedited.length
    ids = torch.tensor([question.ids[: question.length]])
    with torch.no_grad():
        likely = edited.model(ids).logits[0, -1].softmax(-1)
    assert trace.high == pytest.approx(float(likely[question.targets[0]]), rel=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach")
    edited = pico_on_disk(folder / "model")
    fact_before(edited).save(folder / "p.safetensors")
    (folder / "text.txt").write_text(" ".join(SENTENCES), encoding="utf-8")
    return folder


def called(*arguments: str | Path) -> tuple[Any, str]:
    found = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), found.stderr


def test_perplexity_warns(folder: Path) -> None:
    asked = ("ppl", folder / "model", "--text", folder / "text.txt")
    plain, quiet = called(*asked)
    told, loud = called(*asked, "--patch", folder / "p.safetensors")
    assert "prompt patch" not in quiet
    assert "1 prompt patch does not act on texts, which are not prompts" in " ".join(loud.split())
    assert told["summary"]["before"] == plain["summary"]
    assert {n: s for n, s in told["summary"].items() if n != "before"} == plain["summary"]


def test_lm_eval_warns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.metrics.lm_eval.run_harness", lambda *_, **__: {"towns": {}})
    asked = ("tasks", folder / "model", "--harness", "towns", "--results", tmp_path)
    told, loud = called(*asked, "--patch", folder / "p.safetensors")
    note = f"1 prompt patch does not act on {HARNESS_TEXTS}"
    assert note in " ".join(loud.split())
    assert note in (Path(told["run"]) / "report.md").read_text("utf-8")


def test_the_lens_reads_the_rendered_prompt(folder: Path) -> None:
    marked = FACT.text.replace(FACT.subject, f"{{{FACT.subject}}}")
    asked = ("lens", folder / "model", marked, FACT.target)
    plain, _ = called(*asked)
    told, _ = called(*asked, "--patch", folder / "p.safetensors")
    edited = pico_on_disk(folder / "again")
    text = fact_before(edited).render(FACT.text)
    assert "".join(told["tokens"]).endswith(FACT.text)
    assert len(told["tokens"]) == len(encode(edited.tokenizer, text).ids)
    assert told["before"].pop("tokens") == plain["tokens"] != told["tokens"]
    assert told["before"] == plain["after"]
    ids = torch.tensor([encode(edited.tokenizer, text).ids])
    with torch.no_grad():
        likely = edited.model(ids).logits[0].softmax(-1).max(-1).values
    np.testing.assert_allclose([row[-1] for row in told["after"]["likeliest"]], likely, rtol=1e-4)
    shown = CliRunner().invoke(
        app, [*map(str, asked), "--patch", str(folder / "p.safetensors")], catch_exceptions=False
    )
    assert shown.exit_code == 0 and "subject's last token" in shown.stdout
