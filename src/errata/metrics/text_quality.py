"""Generation tests: is the text of an edited model varied, on the subject, and does it know it.

- fluency: the n-gram entropy of a text in bits, ½ (⅔ H₂ + 4⁄3 H₃), low where it repeats
  itself (arXiv 1809.05972, weighted as in 2202.05262, section 3.4),
- consistency: the cosine of TF-IDF vectors of the texts and of reference texts about things
  of which the new target has always been true,
- essence: the perplexity of reference texts about the subject itself.

They need the extra `eval` (nltk for words, scikit-learn for TF-IDF). Words are those of
NLTK's tokeniser on the whole text: sentences are not split first, which needs data that is
fetched from the network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.metrics.likelihood import perplexity
from errata.metrics.scores import Score, mean, named
from errata.models.generation import free_texts

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""How much the entropy of n-grams counts, by n."""
FIGURES = ("fluency", "consistency", "essence_perplexity")
"""What is told of the texts about a case."""
ESSENCE_TOKENS = 100
"""How much of the reference texts about a subject is read."""


class Written(NamedTuple):
    """What a model wrote about one case, and what that scores; None where it cannot be said."""

    texts: tuple[str, ...]
    fluency: float | None
    consistency: float | None
    essence_perplexity: float | None


def missing_extras() -> list[str]:
    """Return which of the packages that generation tests need are not installed."""
    needed = {"nltk": "nltk", "sklearn": "scikit-learn"}
    return [package for module, package in needed.items() if find_spec(module) is None]


def _need(module: str) -> None:
    if find_spec(module) is None:
        raise ErrataError(
            f"generation tests need {module}, which is not installed",
            "pip install 'errata[eval]'",
        )


def words(text: str) -> list[str]:
    """Return the words and marks of a text."""
    _need("nltk")
    from nltk.tokenize import NLTKWordTokenizer

    return list(NLTKWordTokenizer().tokenize(text))


def n_gram_entropy(text: str, *, geometric: bool = False) -> float:
    """Return the weighted mean entropy of a text's bigrams and trigrams, bits.

    A text too short for an n-gram counts 0 there. `geometric` takes the geometric mean.
    """
    found = words(text)
    parts = [
        weight * entropy(list(zip(*(found[i:] for i in range(n)), strict=False)))
        for n, weight in WEIGHTS.items()
    ]
    return math.prod(parts) ** (1 / len(parts)) if geometric else sum(parts) / len(parts)


def entropy(items: Sequence[Any]) -> float:
    """Return the entropy of how often items occur, bits."""
    shares = [count / len(items) for count in Counter(items).values()]
    return -sum(share * math.log2(share) for share in shares)


class TfIdf:
    """TF-IDF vectors over the words of a collection of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vectors = _vectorizer().fit(texts)

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], idf: Sequence[float]) -> TfIdf:
        """Take the words' places and weights as given, instead of counting texts."""
        made = cls.__new__(cls)
        made._vectors = _vectorizer(vocabulary=dict(vocabulary))
        made._vectors.idf_ = np.asarray(idf, dtype=float)
        return made

    @property
    def vocabulary(self) -> dict[str, int]:
        """The place of each word."""
        return {word: int(place) for word, place in self._vectors.vocabulary_.items()}

    @property
    def idf(self) -> list[float]:
        """The weight of each word, by place."""
        return [float(weight) for weight in self._vectors.idf_]

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts' vectors, 0 when they share no known word."""
        rows = self._vectors.transform([one, other])  # of length 1
        return float((rows[0] @ rows[1].T).sum())


def _vectorizer(**values: Any) -> Any:
    _need("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**values)


def word_weights(cases: Sequence[Case]) -> TfIdf | None:
    """Weigh the words of all reference texts of cases; None where there are none."""
    collection = sorted({text for case in cases for text in case.references})
    return TfIdf(collection) if collection else None


def write_cases(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    words: TfIdf | None = None,
    seed: int = 0,
    tokens: int = 100,
) -> list[Written]:
    """Let the model write about every case, and score the texts.

    Consistency is told where cases have reference texts and `words` their weights (see
    `word_weights`).
    """
    prompts = [prompt for case in cases for prompt in case.generation_prompts]
    texts = iter(free_texts(model, tokenizer, prompts, tokens=tokens, seed=seed))
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
    """Return the means of `fluency`, `consistency` and `essence_perplexity` over cases."""
    summary = {}
    for name in FIGURES:
        values = [value for case in written if (value := getattr(case, name)) is not None]
        if (score := mean(values)) is not None:
            summary[name] = named(name, score)
    return summary
