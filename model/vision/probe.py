"""A linear probe: logistic regression on features, and its score on held-out pictures.

Pictures with one label each are classes that exclude each other: multinomial regression, top-1 and top-5. Otherwise
every label has a regression of its own, labels filled in along their tree: mAP@100. scikit-learn fits both.

Shapes: `N` pictures, `F` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from downpour import how_to_install
from downpour.model.vision.feature_files import Features
from downpour.model.vision.metrics import BestPredictions
from downpour.model.vision.preparing.items import HELDOUT, TRAIN

# Inverse strengths of regularisation; the one that does best on a fifth of the training pictures is used.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
_NEVER = -1e6  # score of a label that no training picture has, below all others


@dataclass(frozen=True)
class Probed:
    """Result of a probe.

    Attributes:
        scores: `top_1` and `top_5`; or `map_at_100`, `map_at_100_unweighted` and `chance_weighted`.
        num_train: Pictures that were fitted.
        num_heldout: Pictures that were scored.
        num_labels: Labels.
        strength: The inverse strength of regularisation that was chosen.
    """

    scores: Mapping[str, float]
    num_train: int
    num_heldout: int
    num_labels: int
    strength: float


def probe(features: Features, seed: int = 0) -> Probed:
    """Fits a linear classifier on the training pictures and scores it on the held-out ones.

    Features are standardised by the training pictures. Without held-out pictures a fifth of all is held out.

    Args:
        features: Features of labelled pictures.
        seed: Of what is held out.

    Raises:
        ValueError: scikit-learn is missing, a feature is not finite, or there are too few pictures, labels or splits.
    """
    if not np.isfinite(features.values).all():
        raise ValueError("features are not finite; give those of a network that has not diverged")
    exclusive = all(len(labels) <= 1 for labels in features.labels)
    used = np.array([bool(labels) or not exclusive for labels in features.labels])
    if not any(features.labels):
        raise ValueError("no picture has a label; give features of labelled pictures")
    train, heldout = _divided(np.array(features.splits), used, seed)
    targets = _targets(features, exclusive)
    if exclusive and len(set(targets[train].tolist())) < 2:
        raise ValueError("the training pictures have a single class; give at least two")
    fit, score = (_exclusive, _tops) if exclusive else (_several, _precision)
    strength = _strength(features.values, targets, train, fit, score, seed)
    predicted = fit(features.values[train], targets[train], strength)(features.values[heldout])
    scores = score(predicted, targets[heldout])
    return Probed(scores, len(train), len(heldout), len(features.about.tree), strength)


def _divided(splits: np.ndarray, used: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pictures to fit and to score."""
    train, heldout = np.flatnonzero(used & (splits == TRAIN)), np.flatnonzero(used & (splits == HELDOUT))
    if not len(train) and not len(heldout):
        train, heldout = _parted(np.flatnonzero(used), seed)
    if len(train) < 5 or not len(heldout):
        raise ValueError(
            f"{len(train)} labelled pictures are to train on and {len(heldout)} held out; give at least 5 and 1"
        )
    return train, heldout


def _parted(numbers: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four fifths and one fifth, at random."""
    shuffled = np.random.default_rng(seed).permutation(numbers)
    return shuffled[len(numbers) // 5 :], shuffled[: len(numbers) // 5]


def _targets(features: Features, exclusive: bool) -> np.ndarray:
    """The class of each picture, [N] int, -1 for none; or labels with ancestors, [N, C] of 0 and 1."""
    if exclusive:
        return np.array([labels[0] if labels else -1 for labels in features.labels])
    tree = features.about.tree
    hot = np.zeros((len(features.labels), len(tree)), np.float32)
    for row, labels in zip(hot, features.labels, strict=True):
        row[list(tree.with_ancestors(labels))] = 1
    return hot


def _strength(values: np.ndarray, targets: np.ndarray, train: np.ndarray, fit: Any, score: Any, seed: int) -> float:
    """The strength that scores best on a fifth of the training pictures, fitted on the others."""
    mine, others = _parted(train, seed)
    if targets.ndim == 1 and len(set(targets[mine].tolist())) < 2:
        return 1.0
    if targets.ndim == 2 and not targets[others].any():
        return 1.0
    found = []
    for strength in STRENGTHS:
        predicted = fit(values[mine], targets[mine], strength)(values[others])
        found.append((next(iter(score(predicted, targets[others]).values())), strength))
    return max(found, key=lambda pair: pair[0])[1]


def _exclusive(values: np.ndarray, classes: np.ndarray, strength: float) -> Any:
    """Fits; the function that it returns gives for each picture the classes, the most likely first."""
    pipeline = _regression(strength).fit(values, classes)

    def ranked(given: np.ndarray) -> np.ndarray:
        found: np.ndarray = pipeline.classes_[np.argsort(-pipeline.predict_proba(given), axis=1, kind="stable")]
        return found

    return ranked


def _several(values: np.ndarray, hot: np.ndarray, strength: float) -> Any:
    """Fits one regression a label; the function that it returns gives scores [N, C]."""
    counts = hot.sum(axis=0)
    known = np.flatnonzero((counts > 0) & (counts < len(hot)))
    fitted = {label: _regression(strength).fit(values, hot[:, label]) for label in known}

    def scored(given: np.ndarray) -> np.ndarray:
        scores = np.full((len(given), hot.shape[1]), _NEVER, np.float32)
        scores[:, counts == len(hot)] = -_NEVER
        for label, pipeline in fitted.items():
            scores[:, label] = pipeline.decision_function(given)
        return scores

    return scored


def _tops(ranked: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    hits = ranked == classes[:, None]
    return {"top_1": float(hits[:, :1].any(axis=1).mean()), "top_5": float(hits[:, :5].any(axis=1).mean())}


def _precision(scores: np.ndarray, hot: np.ndarray) -> dict[str, float]:
    best = BestPredictions()
    best.add(scores, hot)
    mean, chance = best.mean(), best.chance()
    return {
        "map_at_100": mean.weighted,
        "map_at_100_unweighted": mean.unweighted,
        "chance_weighted": chance.weighted,
    }


def _regression(strength: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ValueError(f"a probe needs scikit-learn: {how_to_install('images')}") from None
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
