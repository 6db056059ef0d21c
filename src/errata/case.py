"""`Case`: a request with everything that is asked of the edited model afterwards."""

from __future__ import annotations

from typing import Any

from errata.request import EditRequest
from errata.settings import Settings


class Case(Settings):
    """One edit and the prompts that show what it did and what it broke."""

    request: EditRequest
    """The edit."""
    target_true: str | None = None
    """What the unedited model says, and what neighbours should go on being answered."""
    paraphrases: tuple[str, ...] = ()
    """The same question in other words; the new target should follow."""
    neighbours: tuple[str, ...] = ()
    """Prompts about other subjects with the same true answer; it should still follow."""
    generation_prompts: tuple[str, ...] = ()
    """Openings for free text about the subject."""
    attribute_prompts: tuple[str, ...] = ()
    """Prompts about subjects of which the new target has always been true."""

    @property
    def id(self) -> str | int | None:
        """The request's own name."""
        return self.request.id

    @classmethod
    def from_counterfact(cls, record: dict[str, Any]) -> Case:
        """Read a record in CounterFact's schema (arXiv 2202.05262, appendix D)."""
        rewrite = record["requested_rewrite"]
        return cls(
            request=EditRequest(
                prompt=rewrite["prompt"],
                subject=rewrite["subject"],
                target=rewrite["target_new"]["str"],
                id=record.get("case_id"),
            ),
            target_true=rewrite["target_true"]["str"].strip(),
            paraphrases=tuple(record.get("paraphrase_prompts", ())),
            neighbours=tuple(record.get("neighborhood_prompts", ())),
            generation_prompts=tuple(record.get("generation_prompts", ())),
            attribute_prompts=tuple(record.get("attribute_prompts", ())),
        )
