"""`Method`: what every editing method is, and all that the rest of errata knows of one.

A method is a frozen settings object whose fields are its hyperparameters. It turns requests
into an edit and leaves the model as it was:

    method.edit(edited, requests, moments=…) -> Edit

`edit` and `costs` are all that a method has to define. The other hooks have defaults: a method
overrides them when it samples something (`sampled`), needs second moments (`moment_blocks`), or
shares work between batches (`begin`). Nothing here imports torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict

from errata.core.cost import Cost
from errata.core.errors import Hint
from errata.core.settings import Settings
from errata.data.request import EditRequest
from errata.methods.search_space import Dial

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from errata.patches.base import Edit, Provenance
    from errata.patches.chat_form import ChatForm
    from errata.patches.edited_model import EditedModel
    from errata.statistics.second_moment import SecondMoment


def overridden(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values, overridden by `given`."""
    result = dict(values)
    for key, value in given.items():
        nested = isinstance(value, Mapping)
        result[key] = overridden(result.get(key) or {}, value) if nested else value
    return result


class Job:
    """Requests that a method works on, cut into batches; batches share what is computed once.

    This one shares nothing. A method that encodes requests or searches several batches
    together returns a subclass from `Method.begin`.
    """

    def __init__(self, requests: Sequence[EditRequest], group_size: int = 1) -> None:
        self.requests = tuple(requests)
        self.group_size = group_size
        """Requests that are worked on together on this machine. It may change results within
        rounding, so a run records it and a resumed run is given it again."""

    def take(self, chosen: range) -> Job:
        """Return the part of the job with the requests at these indices."""
        return Job([self.requests[i] for i in chosen], self.group_size)

    def shared(self) -> Job:
        """Return the job with the work done that its batches share on the model as it is now."""
        return self

    def finished_by(self, method: Method) -> Job:
        """Return the job with its shared work, to be finished with other settings.

        `method` has the same `shared_settings` as the one that began the job.
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """Return the shared work as tensors that can be stored; empty where nothing is shared."""
        return {}

    def with_state(self, state: Mapping[str, Tensor]) -> Job:
        """Return the job with the shared work that `state` returned."""
        return self


class Method(Settings):
    """The settings of an editing method; its fields become flags, recipe keys and provenance."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: ClassVar[str]
    """The name in commands, recipes and patches."""
    label: ClassVar[str]
    """The name as papers write it; also the folder of its runs."""
    batch_limit: ClassVar[int | None] = None
    """Requests that are written at once: 1, or None for any number."""
    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of settings of which one is used: setting one of them unsets the other."""
    spans: ClassVar[tuple[int, ...]] = ()
    """Numbers of consecutive blocks that a calibration tries, where a method edits blocks."""
    restraints: ClassVar[Mapping[str, str]] = {}
    """Settings that keep an edit small, and the direction in which each makes it stronger."""
    moments_hint: ClassVar[Hint | None] = None
    """How to do without second moments, where the method can."""

    @classmethod
    def merged(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return nested settings, overridden by `given`, alternatives unset."""
        result = overridden(values, given)
        for pair in cls.alternatives:
            for chosen, other in (pair, pair[::-1]):
                if given.get(chosen) is not None and given.get(other) is None:
                    result[other] = None
        return result

    @classmethod
    def settled(cls, *layers: Mapping[str, Any]) -> Self:
        """Return the method with its defaults overridden by each layer in turn.

        Raises `ErrataError` for invalid settings.
        """
        values: dict[str, Any] = cls().model_dump()
        for layer in layers:
            values = cls.merged(values, layer)
        return cls.of(values)

    @abstractmethod
    def edit(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, SecondMoment],
        job: Job | None = None,
        notes: Sequence[str] = (),
        command: str | None = None,
    ) -> Edit:
        """Return the edit that makes the model answer `requests`; the model is left as found.

        The edit is made for the model with its present stack of patches. `moments` holds the
        second moment of every block in `moment_blocks`; `job`, where given, is the part of what
        `begin` returned that has these requests. `notes` and `command` go into the provenance.
        """

    @abstractmethod
    def costs(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        batch_sizes: Sequence[int],
        scoring: Cost,
    ) -> list[Cost]:
        """Return the cost of editing `requests` in batches of these sizes.

        `scoring` is the measured cost of scoring the same requests before and after, from which
        the seconds and memory of forward passes can be scaled. The model is left as found.
        """

    @property
    def edited_blocks(self) -> tuple[int, ...]:
        """The blocks whose weights are edited, ascending; empty where none are named."""
        return ()

    def weight_names(self, model: PreTrainedModel) -> tuple[str, ...]:
        """Return the full names of the weights that are edited."""
        from errata.models.families import family_of

        family = family_of(model)
        return tuple(family.weight_name(block) for block in self.edited_blocks)

    @property
    def moment_blocks(self) -> tuple[int, ...]:
        """The blocks whose second moments `edit` needs."""
        return ()

    @classmethod
    def defaults_for(cls, block_count: int) -> dict[str, Any]:
        """Return settings that depend on a model's depth, for models without a preset."""
        return {}

    def check_model(self, block_count: int) -> tuple[str, ...]:
        """Raise `ErrataError` for settings that a model of this depth lacks; return warnings."""
        return ()

    def check(self, moment: SecondMoment) -> None:
        """Raise `ErrataError` for a second moment that the method cannot use."""

    def sampled(self, edited: EditedModel) -> Self:
        """Return the method with everything fixed that it samples from the model.

        The result identifies a run: a killed run is found again by these settings.
        """
        return self

    def forms(self, edited: EditedModel) -> list[ChatForm | None]:
        """Return the forms in which a request is edited, the one that is scored first.

        By default that in which the model is asked.
        """
        return [edited.chat]

    def begin(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        group_size: int | None = None,
    ) -> Job:
        """Return a job for all requests of a run; `group_size` is the recorded one on resume."""
        return Job(requests, group_size or 1)

    def search_space(self, moments: Mapping[int, SecondMoment]) -> tuple[Dial, ...]:
        """Return the settings to calibrate, with ranges that suit these second moments."""
        return ()

    def shared_settings(self) -> dict[str, Any]:
        """Return the settings that `Job.shared` depends on; to change another one is cheap."""
        return self.model_dump(mode="json")

    def scale_free(self, edit: Edit, moments: Mapping[int, SecondMoment]) -> dict[str, float]:
        """Return strengths of an edit just made, as numbers and relative to the model's keys."""
        return {}

    def summary(self) -> str:
        """Return one line: the method and where it writes."""
        if not self.edited_blocks:
            return self.label
        listed = ",".join(str(block) for block in self.edited_blocks)
        return f"{self.label} at block{'s' * (len(self.edited_blocks) > 1)} {listed}"

    def remedies(self) -> tuple[str, ...]:
        """Return changes of settings that make an edit stronger, for edits that failed."""
        return ()

    def provenance(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        weights: Iterable[str],
        **more: Any,
    ) -> Provenance:
        """Return the provenance of an edit of `weights`; `more` are further fields of it."""
        from errata.models.identity import tensor_hash, versions
        from errata.patches.base import Provenance

        fields = {"settings": self.model_dump(mode="json"), "versions": versions(), **more}
        return Provenance(
            base=edited.base,
            method=self.name,
            requests=tuple(requests),
            parents=tuple(patch.digest for patch in edited.patches),
            weights={name: tensor_hash(edited.base_weight(name)) for name in weights},
            **fields,
        )
