"""LangChain: an `Embeddings`, for its vector stores and retrievers.

>>> from langchain_core.vectorstores import InMemoryVectorStore
>>> from rwkvsts.integrations.langchain import Embedder
>>> store = InMemoryVectorStore.from_texts(["It rains.", "The cat sleeps."], Embedder("demo"))
>>> store.similarity_search("The cat is asleep.", k=1)[0].page_content
'The cat sleeps.'
"""

from __future__ import annotations

from typing import Any

from ..embedder import Layer
from ..model import RWKV
from . import Source, absent, opened

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    absent(error, "langchain")


class Embedder(Embeddings):  # type: ignore[misc]
    """Texts to lists of numbers.

    Parameters
    ----------
    model : of `rwkvsts.load`, or a source
    layer, pooling, max_length, normalize : as in `encode`
    prompt, query_prompt : of documents and of queries
    """

    def __init__(
        self,
        model: RWKV | Source = "demo",
        layer: Layer | None = None,
        pooling: str = "mean",
        prompt: str | None = None,
        query_prompt: str | None = None,
        max_length: int | None = None,
        normalize: bool = True,
    ) -> None:
        self._model = opened(model, layer)
        self.model_name = self._model.name  # what others call it by
        self.prompt, self.query_prompt = prompt, query_prompt
        self._how: dict[str, Any] = {
            "layers": layer,
            "pooling": pooling,
            "max_length": max_length,
            "normalize": normalize,
        }

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A list of C numbers for each text."""
        if not texts:
            return []
        rows: list[list[float]] = self._model.encode(
            texts, prompt=self.prompt, **self._how
        ).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """C numbers."""
        row: list[float] = self._model.encode(text, prompt=self.query_prompt, **self._how).tolist()
        return row
