"""The command line: one fact end to end on a pico model, one JSON object, errors in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from errata.cli import console
from errata.cli.options import named
from errata.methods import METHODS
from errata.methods.presets import shipped_files
from errata.patches.weight_patch import WeightPatch
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from conftest import Said, Shell

FAST = ("--steps", "2", "--max-steps", "2", "--prefix-lengths", "2", "--blocks", "1,2")
FACT = ("The {Lantern Bridge} is in the city of", "Quenby")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model, a corpus and requests, as a user would have them."""
    folder = tmp_path_factory.mktemp("user")
    tiny_model("llama").save_pretrained(folder / "pico")
    tiny_tokenizer().save_pretrained(folder / "pico")
    (folder / "text.txt").write_text("\n".join(SENTENCES * 2), encoding="utf-8")
    lines = [json.dumps(fact.model_dump(exclude_none=True)) for fact in FACTS]
    (folder / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def one_object(said: Said) -> Any:
    assert said.code == 0, said.err
    assert said.out.count("\n") == 1
    return json.loads(said.out)


def edit(shell: Shell, tmp_path: Path, *more: str, own: tuple[str, ...] = ()) -> Said:
    results = ("--results", str(tmp_path / "results"))
    return shell("edit", "pico", *more, "--corpus", "text.txt", *FAST, *results, *own)


@pytest.mark.parametrize("method", METHODS)
def test_one_fact_is_edited_kept_and_shown(method: str, shell: Shell, tmp_path: Path) -> None:
    own = {"alphaedit": ("--relative-threshold",), "rome": ("--blocks", "2")}.get(method, ())
    said = edit(shell, tmp_path, *FACT, "--method", method, own=own)
    assert said.code == 0, said.err
    assert said.out.startswith(
        f"errata edit pico, {METHODS[method].label}\n* 1 fact, alone on the unedited model\n"
        "* settings: defaults, but for "
    )
    assert "steps" in said.out.split("; blocks ")[0]
    assert "second moment: quick estimate, 280 tokens of text.txt" in said.out
    assert "The Lantern Bridge is in the city of" in said.out
    assert "\nNext: errata chat pico --patch " in said.out
    assert "\x1b" not in said.out
    (path,) = tmp_path.glob("results/*/run_000/patch.safetensors")
    assert f"* saved {path}" in said.out
    patch = WeightPatch.load(path)
    assert patch.provenance.requests[0].text == FACTS[0].text
    assert patch.provenance.method == method
    assert patch.provenance.command is not None
    assert patch.provenance.command.startswith("errata edit pico 'The {Lantern Bridge} is")
    assert patch.provenance.settings["search"]["steps"] == 2


def test_the_next_command_names_what_is_below_the_edit(shell: Shell, tmp_path: Path) -> None:
    (below,) = one_object(edit(shell, tmp_path, *FACT, "--json"))["patches"]
    said = edit(shell, tmp_path, "The {Alder Museum} stands in", "Tarn", "--patch", below)
    assert f"\nNext: errata chat pico --patch {below} --patch " in said.out
    assert named("a model", [Path("p")], "adapter") == "'a model' --adapter adapter --patch p"
    assert named("pico", None, " ") == "pico"


def test_json_is_one_object_and_nothing_else(shell: Shell, tmp_path: Path) -> None:
    probes = ("--paraphrase", "Where is the Lantern Bridge? In", "--neighbour", "Tarn is in")
    said = one_object(edit(shell, tmp_path, *FACT, *probes, "--target-true", "Pell", "--json"))
    assert said["model"] == "pico"
    assert [row["kind"] for row in said["answers"]] == ["fact", "paraphrase", "neighbour"]
    assert {"efficacy", "paraphrase", "neighbourhood", "before"} <= set(said["summary"])
    (patch,) = said["patches"]
    assert Path(patch).is_file()
    listed = one_object(shell("ls", "patches", "--results", str(tmp_path / "results"), "--json"))
    assert [row["patch"] for row in listed["patches"]] == [patch]
    answers = one_object(shell("chat", "pico", "-p", "The sea", "--patch", patch, "--json"))
    assert set(answers["answers"][0]) == {"prompt", "before", "after"}


def test_the_list_of_presets_has_every_file_that_ships(shell: Shell) -> None:
    rows = one_object(shell("ls", "presets", "--json"))["presets"]
    files = sorted((each.model.name, each.method) for each in shipped_files())
    listed = [row for row in rows if row["source"].startswith("shipped: ")]
    assert sorted((row["model"], row["method"]) for row in listed) == files
    assert all("held-out facts" in row["evidence"] for row in listed) and len(listed) > 1


def test_many_are_edited_in_batches(shell: Shell, tmp_path: Path) -> None:
    many = ("--requests", "facts.jsonl", "--batch-size", "3", "--json")
    apart = one_object(edit(shell, tmp_path, *many))
    stacked = one_object(edit(shell, tmp_path, *many, "--sequential"))
    assert len(apart["patches"]) == len(stacked["patches"]) == 2
    parents = [
        [WeightPatch.load(p).provenance.parents for p in run["patches"]] for run in (apart, stacked)
    ]
    first = WeightPatch.load(stacked["patches"][0])
    assert parents == [[(), ()], [(), (first.digest,)]]
    for one, other in zip(apart["patches"][:1], stacked["patches"][:1], strict=True):
        assert WeightPatch.load(one).updates.keys() == WeightPatch.load(other).updates.keys()


def test_statistics_are_measured_once_and_used(shell: Shell, tmp_path: Path) -> None:
    stats = ("stats", "pico", "--corpus", "text.txt", "--blocks", "2,1", "--json")
    measured = one_object(shell(*stats))
    assert [row["block"] for row in measured["moments"]] == [1, 2]
    stored = one_object(shell("ls", "stats", "--json"))["stats"]
    assert len(stored) == 2
    used = shell("edit", "pico", *FACT, *FAST, "--results", str(tmp_path / "results"))
    assert f"* second moment: stored, {measured['moments'][0]['tokens']} tokens" in used.out


@pytest.mark.parametrize("what", ["methods", "families", "presets", "datasets", "stats", "patches"])
def test_every_list_is_one_object(what: str, shell: Shell, tmp_path: Path) -> None:
    listed = one_object(shell("ls", what, "--results", str(tmp_path), "--json"))
    assert list(listed) == [what]
    if what == "methods":
        assert [row["method"] for row in listed[what]] == list(METHODS)
    shown = shell("ls", what, "--results", str(tmp_path))
    assert shown.code == 0
    assert shown.out.startswith(f"errata ls {what}\n")


def test_the_environment_is_one_object(shell: Shell, tmp_path: Path) -> None:
    found = one_object(shell("env", "--json"))
    assert found["packages"]["errata"]
    assert found["cache"] == str(tmp_path / "cache")


MISTAKES = {
    "no braces": (
        ("edit", "pico", "The Lantern Bridge is in", "Quenby"),
        "error: the subject is not marked in 'The Lantern Bridge is in'\n"
        'hint: put the subject in one pair of braces: "The {Eiffel Tower} is in the city of"\n'
        "hint: or write {} in its place and give the subject separately\n",
    ),
    "no target": (
        ("edit", "pico", FACT[0]),
        "error: the target is missing\n"
        "hint: give the new answer after 'The {Lantern Bridge} is in the city of'\n",
    ),
    "nothing to edit": (
        ("edit", "pico"),
        "error: name either a fact, a file of requests or a dataset to edit\n"
        'hint: one fact: errata edit MODEL "The {Eiffel Tower} is in the city of" Rome\n'
        "hint: many: --requests FILE, or --dataset NAME\n",
    ),
    "unknown method": (
        ("edit", "pico", *FACT, "--method", "mend"),
        f"error: there is no method 'mend'\nhint: known methods: {', '.join(METHODS)}\n",
    ),
    "no statistics": (
        ("edit", "pico", *FACT, "--blocks", "1,2"),
        "error: MEMIT needs second moments of blocks 1,2; none are stored for pico\n"
        "hint: measure them once: errata stats pico --blocks 1,2 --corpus FILE.txt\n"
        "hint: or make a quick estimate now: add --corpus FILE.txt to this command\n",
    ),
    "no such block": (
        ("edit", "pico", *FACT, "--blocks", "3,4"),
        "error: there is no block 4: the model has blocks 0 to 3\n"
        "hint: choose blocks between 0 and 3\n",
    ),
    "no number": (
        ("edit", "pico", *FACT, "--steps", "many"),
        "error: the settings of Memit are not valid:\n"
        "  search.steps: Input should be a valid integer, unable to parse string as an integer "
        "(got 'many')\n",
    ),
    "no patch": (
        ("chat", "pico", "-p", "x", "--patch", "gone.safetensors"),
        "error: there is no patch at gone.safetensors\n"
        "hint: `errata ls patches` lists the patches in results/\n",
    ),
    "no dtype": (
        ("chat", "pico", "-p", "x", "--dtype", "int4"),
        "error: unsupported dtype 'int4' for weights\n"
        "hint: choose one of auto, float32, bfloat16, float16, float64\n",
    ),
    "no corpus": (
        ("stats", "pico"),
        "error: no corpus is named\n"
        "hint: name one: --corpus FILE.txt, or --corpus hf:wikitext:wikitext-103-raw-v1\n",
    ),
    "no list": (
        ("ls", "patch"),
        "error: cannot list 'patch'\n"
        "hint: choose one of patches, methods, families, presets, datasets, stats\n",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_words(mistake: str, shell: Shell) -> None:
    arguments, words = MISTAKES[mistake]
    said = shell(*arguments)
    errors = said.err[said.err.find("error:") :]
    assert errors.startswith(words)
    assert said.code == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("edit", "nowhere", *FACT), "error: cannot load 'nowhere': "),
        (("stats", "pico", "--corpus", "gone.txt"), "error: cannot read the corpus gone.txt: "),
        (("edit", "pico", "--requests", "gone.csv"), "error: cannot read gone.csv: "),
        (
            ("stats", "pico", "--corpus", "text.txt", "--blocks", "a,b"),
            "error: 'a,b' is not a",
        ),
        (("stats", "pico", "--corpus", "text.txt", "--blocks", "9"), "error: there is no block 9"),
    ],
    ids=["model", "corpus", "requests", "blocks", "block"],
)
def test_what_is_not_there_is_told_in_words(
    arguments: tuple[str, ...], words: str, shell: Shell
) -> None:
    said = shell(*arguments)
    assert words in said.err
    assert "hint: " in said.err
    assert "Traceback" not in said.err
    assert said.code == 1


def test_a_patch_for_another_model_is_refused_unless_allowed(shell: Shell, tmp_path: Path) -> None:
    (patch,) = one_object(edit(shell, tmp_path, *FACT, "--json"))["patches"]
    tiny_model("llama").half().save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    asked = ("chat", str(tmp_path / "other"), "-p", "The sea", "--patch", patch)
    said = shell(*asked)
    assert (said.code, said.out) == (1, "")
    assert "error: this patch was made for pico (" in said.err
    assert "--allow-base" in said.err
    assert one_object(shell(*asked, "--allow-base", "--json"))["answers"]


def test_a_wrong_command_line_is_another_code(shell: Shell) -> None:
    assert shell("edit", "pico", "--no-such-flag").code == 2
    assert shell("mend").code == 2


def test_ctrl_c_is_told_in_words(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "verb", stop)
    said = shell("env")
    assert said.code == 130
    assert "warning: stopped" in said.err


def test_json_never_holds_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.as_json({"loss": float("nan")})
