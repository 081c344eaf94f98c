"""scikit-learn: a transformer of texts into embeddings, for pipelines.

>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import make_pipeline
>>> from rwkvsts.integrations.sklearn import Embedder
>>> classify = make_pipeline(Embedder("demo", layer=7), LogisticRegression())
>>> classify.fit(["so good", "so bad", "very good", "very bad"], [1, 0, 1, 0]).predict(["good"])
array([1])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedder import Layer
from ..model import RWKV
from . import Source, absent, opened

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    absent(error, "sklearn")


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to float32 [S, C].

    Parameters
    ----------
    model : of `rwkvsts.load`, or a source, which `fit` opens
    layer, pooling, prompt, max_length, normalize : as in `encode`
    """

    def __init__(
        self,
        model: RWKV | Source = "demo",
        layer: Layer | None = None,
        pooling: str = "mean",
        prompt: str | None = None,
        max_length: int | None = None,
        normalize: bool = False,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.prompt = prompt
        self.max_length = max_length
        self.normalize = normalize

    def fit(self, X: Iterable[str], y: Any = None) -> Embedder:
        """Open the model; nothing is learnt."""
        self.model_ = opened(self.model, self.layer)
        self._n_features_out = self.model_.width
        return self

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Embed the texts.

        Raises what `encode` raises; TypeError for one text, which would be taken letter by letter.
        """
        check_is_fitted(self, "model_")
        if isinstance(X, str):
            raise TypeError("X is str: expected a list of texts")
        return self.model_.encode(
            X,
            layers=self.layer,
            pooling=self.pooling,
            prompt=self.prompt,
            max_length=self.max_length,
            normalize=self.normalize,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags
