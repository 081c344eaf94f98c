"""An endpoint that speaks OpenAI's /v1/embeddings, beside /v1/models, /health and /metrics.

>>> from rwkvsts.integrations.openai import application
>>> import uvicorn
>>> uvicorn.run(application("demo", layer=7), port=8000)  # doctest: +SKIP

Promises that a text's vector is `encode`'s to the bit; that what is wrong with a request is told in
OpenAI's form of an error; and that memory is bounded: by the size of a request's body, and by the
number of requests that may wait, beyond which the answer is 429. There is no authentication: put
a proxy before it where others can reach it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from ..corpus import Projection
from ..embedder import Layer, Prompt, to_unit_length
from ..model import RWKV
from . import Source, absent, opened
from .batching import Batcher, Busy, Rows

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    absent(error, "serve")

KNOWN = ("input", "model", "encoding_format", "dimensions", "user")


class Refused(Exception):
    """A request that cannot be answered: status, message, the parameter that is wrong."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter = status, message, parameter

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        about = {"message": self.message, "type": kind, "param": self.parameter, "code": None}
        headers = {"Retry-After": "1"} if self.status == 429 else None
        return JSONResponse({"error": about}, self.status, headers)


def application(
    model: RWKV | Source = "demo",
    layer: Layer | None = None,
    pooling: str = "mean",
    prompt: str | None = None,
    normalize: bool = True,
    *,
    projection: Projection | None = None,
    name: str | None = None,
    most_waiting: int = 128,
    most_bytes: int = 4 << 20,
    most_tokens: int = 16384,
) -> Starlette:
    """The ASGI application.

    Parameters
    ----------
    model : of `rwkvsts.load`, or a source
    layer, pooling, prompt, normalize : as in `encode`; OpenAI's own vectors have length 1
    projection : to fewer numbers, of which a request may ask for the first `dimensions`
    name : of the model in requests; default: the model's own
    most_waiting : requests that may wait for a pass
    most_bytes : of a request's body
    most_tokens : of a pass, unless one request alone has more
    """
    server = _Server(
        opened(model, layer),
        layer,
        pooling,
        prompt,
        normalize,
        projection,
        name,
        most_waiting,
        most_bytes,
        most_tokens,
    )

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.batcher.close)

    routes = [
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/health", server.health),
        Route("/metrics", server.show_metrics),
    ]
    return Starlette(routes=routes, lifespan=life)


class _Metrics:
    """What /metrics tells, in a registry of its own: an application may hold several servers."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        how: Any = {"registry": self.registry}
        self.requests = Counter("rwkvsts_requests", "Requests answered", ["status"], **how)
        self.texts = Counter("rwkvsts_texts", "Texts embedded", **how)
        self.tokens = Counter("rwkvsts_tokens", "Tokens embedded", **how)
        self.seconds = Histogram("rwkvsts_request_seconds", "Time of a request", **how)
        waiting = Gauge("rwkvsts_waiting_requests", "Requests that wait for a pass", **how)
        waiting.set_function(lambda: batcher.waiting)
        passes = Gauge("rwkvsts_passes", "Passes of the model so far", **how)
        passes.set_function(lambda: batcher.passes)


class _Server:
    """The answers; the arguments are those of `application`, with the model opened."""

    def __init__(
        self,
        model: RWKV,
        layer: Layer | None,
        pooling: str,
        prompt: str | None,
        normalize: bool,
        projection: Projection | None,
        name: str | None,
        most_waiting: int,
        most_bytes: int,
        most_tokens: int,
    ) -> None:
        self.model, self.name = model, name or model.name
        self.normalize, self.most_bytes = normalize, most_bytes
        layer = model.default_layer if layer is None else layer
        self.projection = projection and projection.narrow([layer])
        if self.projection:
            self.projection.check(model, pooling, prompt)
        how: dict[str, Any] = {
            "layers": layer,
            "pooling": pooling,
            "normalize": normalize and projection is None,
            "show_progress": False,
        }
        pieces = Prompt.of(prompt)
        state = model.state(pieces.before) if pieces.before else None
        ending = self._tokenize(pieces.after) if pieces.after else []

        def of_ids(ids: list[Any]) -> Rows:
            if pieces.between:
                raise ValueError("a prompt that reads the text twice takes texts, not token ids")
            rows = model.encode_ids([[*some, *ending] for some in ids], state=state, **how)
            return self._projected(rows)

        def of_texts(texts: list[Any]) -> Rows:
            return self._projected(model.encode(texts, prompt=prompt, **how))

        of_texts(["a"])  # what is wrong with layer or pooling is told now
        self.batcher = Batcher({"texts": of_texts, "ids": of_ids}, most_tokens, most_waiting)
        self.metrics = _Metrics(self.batcher)

    def _projected(self, rows: Rows) -> Rows:
        return rows if self.projection is None else self.projection.transform(rows[:, None])[:, 0]

    def _cut(self, rows: Rows, dimensions: int | None) -> Rows:
        """What a request gets of projected rows: as many directions as it asked for."""
        if self.projection is None:
            return rows
        cut: Rows = rows[:, :dimensions].copy()
        if self.normalize:
            to_unit_length(cut)
        return cut

    def _tokenize(self, text: str) -> list[int]:
        if self.model.tokenizer is None:
            raise Refused(400, "this model has no tokenizer: send token ids", "input")
        return self.model.tokenizer.encode(text)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        start = time.perf_counter()
        try:
            response = await self._answer(request)
        except Refused as refused:
            response = refused.response()
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - start)
        return response

    async def _answer(self, request: Request) -> Response:
        body = await self._body(request)
        kind, items = _inputs(body.get("input"), self.model.config.n_vocab)
        encoding = body.get("encoding_format") or "float"
        self._check(body, encoding)
        if kind == "texts":
            tokens = sum(len(self._tokenize(text)) for text in items)
        else:
            tokens = sum(map(len, items))
        try:
            future = self.batcher.submit(kind, items, tokens)
        except Busy:
            raise Refused(429, "too many requests wait; try again in a moment") from None
        try:
            rows = await asyncio.wrap_future(future)
        except Exception as error:
            raise Refused(500, f"the pass failed: {error}") from error
        self.metrics.texts.inc(len(items))
        self.metrics.tokens.inc(tokens)
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(row, encoding)}
            for i, row in enumerate(self._cut(rows, body.get("dimensions")))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    async def _body(self, request: Request) -> dict[str, Any]:
        """The request's JSON object, refused before more of it is held than may be."""
        held = bytearray()
        async for piece in request.stream():
            held += piece
            if len(held) > self.most_bytes:
                raise Refused(413, f"the body is longer than {self.most_bytes} bytes; send less")
        try:
            body = json.loads(held)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON: {str(error)[:200]}") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body is no JSON object")
        return body

    def _check(self, body: dict[str, Any], encoding: Any) -> None:
        if body.get("model") != self.name:
            raise Refused(
                404, f"there is no model {body.get('model')!r}: {self.name!r} is", "model"
            )
        if encoding not in ("float", "base64"):
            raise Refused(400, "encoding_format: expected 'float' or 'base64'", "encoding_format")
        self._check_dimensions(body.get("dimensions"))
        if unknown := [key for key in body if key not in KNOWN]:
            raise Refused(400, f"{unknown[0][:50]!r} is not known here; leave it out", unknown[0])

    def _check_dimensions(self, wanted: Any) -> None:
        if wanted is None:
            return
        if self.projection is None:
            if wanted != self.model.width:
                has = f"this model has {self.model.width}, and is served without a projection"
                raise Refused(400, f"dimensions: {has}, which alone makes fewer", "dimensions")
        elif type(wanted) is not int or not 1 <= wanted <= self.projection.width:
            most = self.projection.width
            raise Refused(400, f"dimensions: expected 1 .. {most} of the projection", "dimensions")

    async def models(self, _: Request) -> Response:
        """GET /v1/models."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "rwkvsts"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        """GET /health: the answer itself is the news."""
        return JSONResponse({"status": "ok", "model": self.name, "device": self.model.device})

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics, in Prometheus's text format."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain")


def _inputs(given: Any, n_vocab: int) -> tuple[str, list[Any]]:
    """A request's input as its kind and its items: a text or several, token ids or lists of them.

    Raises
    ------
    Refused : it is something else, or empty
    """
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refused(400, "input: expected a text, a list of texts, or token ids", "input")
    if isinstance(given[0], int):
        given = [given]
    for i, item in enumerate(given):
        if not item:
            raise Refused(400, f"input[{i}] is empty; leave it out", "input")
        if isinstance(item, list):
            whole = all(isinstance(token, int) and not isinstance(token, bool) for token in item)
            if not whole or min(item) < 0 or max(item) >= n_vocab:
                raise Refused(400, f"input[{i}]: expected token ids below {n_vocab}", "input")
        elif isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                raise Refused(400, f"input[{i}] holds half a surrogate pair", "input") from None
    for kind, right in (("texts", str), ("ids", list)):
        if all(isinstance(item, right) for item in given):
            return kind, given
    raise Refused(400, "input: expected texts alone or token ids alone", "input")


def _encoded(row: Rows, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    numbers: list[float] = row.astype(np.float64).tolist()
    return numbers
