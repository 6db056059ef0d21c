"""The cases of `errata edit`: one fact, a file of requests, or a dataset.

An option of one source that is given with another is an error; no option is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from errata.cli.options import load_dataset, show_skipped, show_unused
from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.request import EditRequest
from errata.data.request_files import load_requests
from errata.data.unicode_forms import normalised


class Cut(NamedTuple):
    """Which cases of a dataset are used."""

    limit: int | None
    offset: int
    seed: int | None
    skip_invalid: bool
    normalise: bool = False


def named_cases(
    model: str,
    prompt: str | None,
    target: str | None,
    subject: str | None,
    requests: Path | None,
    dataset: str | None,
    cut: Cut,
    separator: str | None = None,
) -> list[Case]:
    """Read the cases from the one source that was given; `cut` selects among them.

    Raises `ErrataError` for no source, for several, and for options of another source.
    """
    if (prompt is not None) + (requests is not None) + (dataset is not None) != 1:
        raise ErrataError(
            "name either a fact, a file of requests or a dataset to edit",
            'one fact: errata edit MODEL "The {Eiffel Tower} is in the city of" Rome',
            "many: --requests FILE, or --dataset NAME",
        )
    if dataset is not None:
        _refuse_subject(subject, separator, "--dataset")
        return load_dataset(dataset, *cut[:-1], normalise=cut.normalise).cases
    if requests is not None:
        _refuse_subject(subject, separator, "--requests")
        _refuse_cut(cut, "--requests", "a file of requests may be given as --dataset FILE")
        found = load_requests(requests, skip_invalid=cut.skip_invalid, normalise=cut.normalise)
        show_skipped(found.skipped)
        show_unused(found.unused)
        return [Case(request=request) for request in found.requests]
    assert prompt is not None
    if target is None:
        raise ErrataError("the target is missing", f"give the new answer after {prompt!r}")
    _refuse_cut(cut, "one fact", "they select cases of a dataset: --dataset NAME")
    if cut.skip_invalid:
        raise ErrataError(
            "--skip-invalid cannot be used with one fact",
            "it skips invalid records of --requests FILE or --dataset NAME",
        )
    if cut.normalise:
        prompt, target = normalised(prompt), normalised(target)
        subject = None if subject is None else normalised(subject)
    request = EditRequest.parse(prompt, target, subject, separator)
    return [(_known_case(request) if model == "demo" else None) or Case(request=request)]


def _refuse_subject(subject: str | None, separator: str | None, source: str) -> None:
    for name, value in (("subject", subject), ("separator", separator)):
        if value is not None:
            raise ErrataError(
                f"--{name} cannot be used with {source}", f"every record names its own {name}"
            )


def _refuse_cut(cut: Cut, source: str, hint: str) -> None:
    given = {"--limit": cut.limit, "--offset": cut.offset or None, "--seed": cut.seed}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ErrataError(f"{', '.join(names)} cannot be used with {source}", hint)


def _known_case(request: EditRequest) -> Case | None:
    """Return the demo dataset's case of a fact, with its probes."""
    from errata.data.datasets import read_cases

    for case in read_cases("demo"):
        if (case.request.subject, case.request.prompt) == (request.subject, request.prompt):
            return case.with_values(request=request)
    return None


def with_probes(
    cases: list[Case],
    paraphrases: list[str] | None,
    neighbours: list[str] | None,
    target_true: str | None,
) -> list[Case]:
    """Add paraphrases, neighbours and the true answer to the single case."""
    given = {"paraphrases": paraphrases, "neighbours": neighbours, "target_true": target_true}
    given = {key: value for key, value in given.items() if value}
    if not given:
        return cases
    if len(cases) > 1:
        raise ErrataError(
            "--paraphrase, --neighbour and --target-true apply to one fact only",
            "give them for several facts in a dataset file: --dataset FILE",
        )
    return [cases[0].with_values(**given)]
