"""The recipes in docs/examples: which of Keras' examples they are, and by what they are compared with plain Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


@dataclass(frozen=True)
class Example:
    """An example: its title on keras.io, the metric that is compared, and whether more of it is better."""

    title: str
    metric: str
    more_is_better: bool


EXAMPLES = {
    "addition_rnn": Example("Sequence to sequence learning for performing number addition", "accuracy", True),
    "bidirectional_lstm": Example("Bidirectional LSTM on IMDB", "accuracy", True),
    "collaborative_filtering": Example("Collaborative Filtering for Movie Recommendations", "loss", False),
    "convolutional_autoencoder": Example("Convolutional autoencoder for image denoising", "loss", False),
    "image_classification": Example("Image classification from scratch", "accuracy", True),
    "imbalanced_classification": Example("Imbalanced classification: credit card fraud detection", "auc", True),
    "structured_data": Example("Structured data classification from scratch", "auc", True),
    "text_classification": Example("Text classification from scratch", "accuracy", True),
    "text_transformer": Example("Text classification with Transformer", "accuracy", True),
    "timeseries_classification": Example("Timeseries classification from scratch", "accuracy", True),
    "variational_autoencoder": Example("Variational AutoEncoder", "loss", False),
    "weather_forecast": Example("Timeseries forecasting for weather prediction", "loss", False),
    "wide_deep_cross": Example(
        "Structured data learning with Wide, Deep, and Cross networks", "accuracy", True
    ),
}  # fmt: skip


def recipe_of(example: str) -> Path:
    """Path of an example's recipe."""
    return FOLDER / f"{example}.py"


def verdict(example: Example, keras: Sequence[float], downpour: Sequence[float]) -> str:
    """Judges the scores of Downpour's seeds by those of plain Keras'.

    Returns:
        `within` if their mean is no worse than plain Keras' worst seed; else `overlap` if the best of them is at least
        as good as that, or `worse`.
    """
    sign = 1 if example.more_is_better else -1
    worst = min(sign * score for score in keras)
    if sign * float(np.mean(downpour)) >= worst:
        return "within"
    return "overlap" if max(sign * score for score in downpour) >= worst else "worse"
