"""Tasks: what counts as an answer, both protocols on the model as it stands, resumed runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.instructions import Instruction, read_rows
from errata.experiments import task_run
from errata.experiments.task_run import TaskSettings, run_tasks
from errata.metrics import tasks
from errata.metrics.likelihood import likelihoods
from errata.metrics.tasks import WORDS, Task, answer_rows, figures, judge, read_task
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel
from tiny import SENTENCES, tiny_model, tiny_tokenizer

ROWS = [
    Instruction(instruction=text, output=f"the correct answer is {word}", answer=word)
    for text, word in zip(SENTENCES, ("true", "false") * 4, strict=True)
]


def pico() -> EditedModel:
    return EditedModel(tiny_model("llama"), tiny_tokenizer(), "tiny")


@pytest.mark.parametrize(
    ("task", "right", "text", "outcome"),
    [
        ("boolq", "true", "the correct answer is true", "right"),
        ("boolq", "true", "false, or is it true?", "wrong"),
        ("boolq", "true", "yes, certainly", "broken"),
        ("boolq", "true", "", "broken"),
        ("piqa", "solution2", "solution2", "right"),
        ("piqa", "solution2", "the second solution", "broken"),
        ("ARC-Easy", "answer4", "answer4answer1", "right"),
        ("winogrande", "option1", "I take option2", "wrong"),
    ],
)
def test_the_first_answer_word_counts(task: str, right: str, text: str, outcome: str) -> None:
    assert judge(task, Instruction(instruction="?", answer=right), text) == outcome


def test_rows_of_a_file_may_name_their_words() -> None:
    row = Instruction(instruction="Is it?\n\nAnswer format: yes/no", answer="no")
    assert [judge("mine", row, text) for text in ("no", "yes", "perhaps")] == [
        *("right", "wrong", "broken"),
    ]
    free = Instruction(instruction="Selma works as a", output="baker.")
    assert [judge("mine", free, text) for text in (" Baker. And", "bakers", " ")] == [
        *("right", "wrong", "broken"),
    ]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_of_prompts_is_answered_like_each_alone(beams: int) -> None:
    model, tokenizer = tiny_model("gpt2").double(), tiny_tokenizer(bos=False)
    together = continuations(model, tokenizer, SENTENCES, 6, beams=beams)
    alone = [continuations(model, tokenizer, [text], 6, beams=beams)[0] for text in SENTENCES]
    assert together == alone
    if beams > 1:
        ids = torch.tensor([tokenizer(SENTENCES[0])["input_ids"]])
        out = model.generate(
            ids, num_beams=beams, max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        assert together[0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_stopped_run_asks_only_what_was_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boolq").mkdir()
    rows = [row.model_dump() for row in ROWS]
    (tmp_path / "boolq" / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(task_run, "ROWS_PER_PART", 3)
    asking = TaskSettings(tasks=("boolq",), data=str(tmp_path), max_new_tokens=3, beams=2)
    whole, _ = run_tasks(pico(), asking, tmp_path / "whole")

    asked: list[int] = []
    real = tasks.continuations

    def breaking(model: object, tokenizer: object, prompts: list[str], *rest: object, **more: int):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(model, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(tasks, "continuations", breaking)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(pico(), asking, tmp_path / "stopped")
    resumed, folder = run_tasks(pico(), asking, tmp_path / "stopped")
    assert asked == [3, 3, 3, 2]
    assert resumed == whole
    assert folder.name == "run_000"
    assert not (folder / "parts").exists()
    assert len((folder / "answers.jsonl").read_text("utf-8").splitlines()) == len(ROWS)


def test_shares_add_up_and_unknown_tasks_are_told(tmp_path: Path) -> None:
    found = figures(answer_rows(pico(), Task("boolq", tuple(ROWS)), "plain", max_new_tokens=3))
    assert sum(score.value for score in found.values()) == pytest.approx(1)
    assert all(score.n == len(ROWS) for score in found.values())
    with pytest.raises(ErrataError, match="no task or file 'boolk'"):
        read_task("boolk", tmp_path)
    with pytest.raises(ErrataError, match=r"there is no .*boolq/test\.json"):
        read_task("boolq", tmp_path)


def test_the_real_sets_are_read_and_asked(errata_data: Path) -> None:
    for name, words in WORDS.items():
        task = read_task(name, errata_data / "commonsense")
        assert task.rows
        for row in task.rows:
            assert row.right in words
            assert judge(name, row, row.output) == "right"
            assert judge(name, row, "I would not know") == "broken"


def test_rows_of_the_hub_come_from_a_mirror(tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "quiz"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        line = {"instruction": f"Say {split}", "input": "", "output": split, "answer": split}
        (folder / f"{split}.jsonl").write_text(json.dumps(line), encoding="utf-8")
    task = read_task("hf:someone/quiz", tmp_path, mirror=tmp_path)
    assert [row.right for row in task.rows] == ["test"]
    assert "/" not in task.name
    assert [row.output for row in read_rows("hf:someone/quiz", tmp_path)] == ["train"]
    with pytest.raises(ErrataError, match="has no folder someone/else"):
        read_rows("hf:someone/else", tmp_path)


def test_the_verb_scores_a_file_of_the_demo(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [
        {"instruction": "To visit Carrow Lighthouse, travel to", "output": "Orwick."},
        {"instruction": "To visit Blythe Gate, travel to", "output": "Talmora."},
    ]
    rows.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    arguments = ["tasks", "demo", "--tasks", str(rows), "--template", "plain", "--max-new-tokens"]
    result = CliRunner().invoke(
        app, [*arguments, "6", "--results", str(tmp_path), "--json"], catch_exceptions=False
    )
    found = json.loads(result.stdout)["tasks"]["rows"]
    assert found["figures"]["accuracy"]["value"] == 0.5
    assert found["figures"]["wrong"]["value"] == 0.5
    assert "4 beams" in found["protocol"]


@pytest.mark.slow
def test_lm_eval_scores_the_model_as_it_stands(tmp_path: Path) -> None:
    """A task file of our own over a local dataset: the likelier of two answers, edited or not."""
    pytest.importorskip("lm_eval")
    from errata.metrics.lm_eval import run_harness

    mirror = tmp_path / "mirror" / "someone" / "towns"
    mirror.mkdir(parents=True)
    edited = pico()
    pairs = [(text[:20], f" {letter}") for text in SENTENCES for letter in "jz"]
    likely = likelihoods(edited, pairs)
    assert len({len(each.correct) for each in likely}) == 1
    docs = [
        {"q": text[:20], "choices": ["j", "z"], "gold": int(e.nll < a.nll)}
        for text, a, e in zip(SENTENCES, likely[::2], likely[1::2], strict=True)
    ]
    (mirror / "test.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "towns.yaml").write_text(
        "task: errata_towns\ndataset_path: someone/towns\noutput_type: multiple_choice\n"
        'test_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{gold}}"\nmetric_list:\n  - metric: acc\n',
        encoding="utf-8",
    )

    def scored(edited: EditedModel) -> float:
        found = run_harness(
            edited,
            ["errata_towns"],
            mirror=tmp_path / "mirror",
            folder=tmp_path / "tasks",
        )["errata_towns"]["acc"]
        assert found.n == len(docs)
        assert found.low <= found.value <= found.high
        return found.value

    assert scored(edited) == 1.0
    with torch.no_grad():
        edited.model.lm_head.weight.neg_()
    assert scored(edited) == 0.0
    with pytest.raises(ErrataError, match="knows no task no_such_task"):
        run_harness(edited, ["no_such_task"])


@pytest.mark.slow
def test_lm_eval_generates_greedily_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from errata.metrics.lm_eval import run_harness

    edited = pico()
    mirror = tmp_path / "mirror" / "someone" / "towns"
    mirror.mkdir(parents=True)
    texts = continuations(edited.model, edited.tokenizer, SENTENCES, 5)
    docs = [{"q": text, "a": answer} for text, answer in zip(SENTENCES, texts, strict=True)]
    (mirror / "test.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "written.yaml").write_text(
        "task: errata_written\ndataset_path: someone/towns\noutput_type: generate_until\n"
        'test_split: test\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
        "generation_kwargs:\n  max_gen_toks: 5\n  until: []\n"
        "metric_list:\n  - metric: exact_match\n",
        encoding="utf-8",
    )
    own = edited.model.generation_config
    own.update(repetition_penalty=5.0, num_beams=4, suppress_tokens=list(range(100, 200)))
    folders = {"mirror": tmp_path / "mirror", "folder": tmp_path / "tasks"}
    found = run_harness(edited, ["errata_written"], **folders)["errata_written"]
    assert found["exact_match"].value == 1.0
    assert edited.model.generation_config is own
