"""Quality of generated texts: fluency, consistency with reference texts, essence.

- fluency: the n-gram entropy of a text in bits, ½ (⅔ H₂ + 4⁄3 H₃), low for repetitive text
  (arXiv 1809.05972, weighted as in 2202.05262, section 3.4),
- consistency: the cosine of TF-IDF vectors of the texts and of reference texts about subjects
  for which the new target has always been true,
- essence: the perplexity of reference texts about the subject itself.

They need the extra `eval` (nltk for words, scikit-learn for TF-IDF). Words are those of NLTK's
tokenizer on the whole text: splitting sentences first would need data from the network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.metrics.base import EvalSettings, Metric, Unit, in_unit, number
from errata.metrics.likelihood import perplexity
from errata.metrics.scores import Score, mean
from errata.models.generation import free_texts
from errata.patches.edited_model import EditedModel

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weights of the n-gram entropies, by n."""
FIGURES = ("fluency", "consistency", "essence_perplexity")
"""The scores of the texts about a case."""
ESSENCE_TOKENS = 100
"""Length to which reference texts about a subject are truncated, in tokens."""


class Written(NamedTuple):
    """The texts that a model generated about one case, and their scores; None if undefined."""

    texts: tuple[str, ...]
    fluency: float | None
    consistency: float | None
    essence_perplexity: float | None


@dataclass(frozen=True)
class TextQuality(Metric[Written]):
    """Sampled texts about the subject of a case; the outcome is a `Written`."""

    name: ClassVar[str] = "texts"
    title: ClassVar[str] = "texts"
    words: TfIdf | None = None
    """Word weights of the reference texts of all cases of the run."""
    seed: int = 0
    tokens: int = 100

    @property
    def units(self) -> Mapping[str, Unit]:
        """Entropy is in bits; a perplexity has no unit."""
        return {"fluency": "amount", "essence_perplexity": "amount"}

    @property
    def comparison(self) -> Mapping[str, Sequence[str]]:
        """All three scores."""
        return {self.title: FIGURES}

    def prepared(self, cases: Sequence[Case], settings: EvalSettings) -> Self | None:
        """Weigh the words of all cases; only runs that generate include this, with the extra."""
        if not settings.generate or missing_extras():
            return None
        weights = word_weights(cases)
        return replace(self, words=weights, seed=settings.seed, tokens=settings.text_tokens)

    def score(self, edited: EditedModel, cases: Sequence[Case], first: int = 0) -> list[Written]:
        """Return the texts about each case; the seed moves on with the position of the cases."""
        seed = self.seed + first
        return write_cases(edited, cases, words=self.words, seed=seed, tokens=self.tokens)

    def record(self, outcome: Written) -> dict[str, Any]:
        """Return the texts, and the scores that are defined."""
        scores = {name: getattr(outcome, name) for name in FIGURES}
        figures = {name: value for name, value in scores.items() if value is not None}
        return {"texts": list(outcome.texts), "figures": figures}

    def read(self, record: Mapping[str, Any]) -> Written | None:
        """Return the stored texts and scores, None if there are neither."""
        if "texts" not in record and "figures" not in record:
            return None
        figures = {name: number(value) for name, value in (record.get("figures") or {}).items()}
        texts = tuple(record.get("texts") or ())
        return Written(texts, *(figures.get(name) for name in FIGURES))

    def summarise(self, outcomes: Sequence[Written]) -> dict[str, Score]:
        """Return the means of `fluency`, `consistency` and `essence_perplexity` over cases."""
        summary = {}
        for name in FIGURES:
            values = [value for case in outcomes if (value := getattr(case, name)) is not None]
            if (score := mean(values)) is not None:
                summary[name] = in_unit(self.units.get(name, "share"), score)
        return summary


def missing_extras() -> list[str]:
    """Return the names of the packages that these scores need and that are not installed."""
    needed = {"nltk": "nltk", "sklearn": "scikit-learn"}
    return [package for module, package in needed.items() if find_spec(module) is None]


def _need(module: str) -> None:
    if find_spec(module) is None:
        raise ErrataError(
            f"generation tests need {module}, which is not installed",
            "pip install 'errata-lm[eval]'",
        )


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text."""
    _need("nltk")
    from nltk.tokenize import NLTKWordTokenizer

    return list(NLTKWordTokenizer().tokenize(text))


def n_gram_entropy(text: str, *, geometric: bool = False) -> float:
    """Return the weighted mean entropy of a text's bigrams and trigrams, bits.

    A text too short for an n-gram counts as 0. `geometric` takes the geometric mean.
    """
    found = words(text)
    parts = [
        weight * entropy(list(zip(*(found[i:] for i in range(n)), strict=False)))
        for n, weight in WEIGHTS.items()
    ]
    return math.prod(parts) ** (1 / len(parts)) if geometric else sum(parts) / len(parts)


def entropy(items: Sequence[Any]) -> float:
    """Return the entropy of the frequencies of items, bits."""
    shares = [count / len(items) for count in Counter(items).values()]
    return -sum(share * math.log2(share) for share in shares)


class TfIdf:
    """TF-IDF vectors over the words of a collection of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vectors = _vectorizer().fit(texts)

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], idf: Sequence[float]) -> TfIdf:
        """Build from a given vocabulary (word → index) and IDF weights instead of from texts."""
        made = cls.__new__(cls)
        made._vectors = _vectorizer(vocabulary=dict(vocabulary))
        made._vectors.idf_ = np.asarray(idf, dtype=float)
        return made

    @property
    def vocabulary(self) -> dict[str, int]:
        """The index of each word."""
        return {word: int(index) for word, index in self._vectors.vocabulary_.items()}

    @property
    def idf(self) -> list[float]:
        """The IDF weight of each word, by index."""
        return [float(weight) for weight in self._vectors.idf_]

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts' vectors, 0 if they share no known word."""
        rows = self._vectors.transform([one, other])  # of unit length
        return float((rows[0] @ rows[1].T).sum())


def _vectorizer(**values: Any) -> Any:
    _need("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**values)


def word_weights(cases: Sequence[Case]) -> TfIdf | None:
    """Return the TF-IDF weights over all reference texts of cases; None if there are none."""
    collection = sorted({text for case in cases for text in case.references})
    return TfIdf(collection) if collection else None


def write_cases(
    edited: EditedModel,
    cases: Sequence[Case],
    *,
    words: TfIdf | None = None,
    seed: int = 0,
    tokens: int = 100,
) -> list[Written]:
    """Generate texts of `tokens` tokens about every case, and score them.

    Consistency is defined where cases have reference texts and `words` holds their weights (see
    `word_weights`). Prompts pass through `EditedModel.rendered`; what that adds is not in the
    texts. Essence texts are no prompts: prompt patches do not act on their perplexity.
    """
    prompts = [prompt for case in cases for prompt in case.generation_prompts]
    rendered = [edited.rendered(prompt) for prompt in prompts]
    model, tokenizer = edited.model, edited.tokenizer
    texts = iter(free_texts(model, tokenizer, prompts, tokens, seed=seed, rendered=rendered))
    found = []
    for case in cases:
        mine = tuple(next(texts) for _ in case.generation_prompts)
        fluent = sum(map(n_gram_entropy, mine)) / len(mine) if mine else None
        consistent = None
        if words is not None and case.references and mine:
            consistent = words.similarity(" ".join(mine), " ".join(case.references))
        essence = None
        if case.essence:
            essence = perplexity(model, tokenizer, " ".join(case.essence), ESSENCE_TOKENS)
        found.append(Written(mine, fluent, consistent, essence))
    return found


def summarise_written(written: Sequence[Written]) -> dict[str, Score]:
    """Return all scores of texts; see `TextQuality.summarise`."""
    return TextQuality().summarise(written)
