"""The endpoint, asked by the real openai client over loopback, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rwkvsts
from rwkvsts import RWKV
from rwkvsts.integrations import batching
from rwkvsts.integrations.batching import Batcher, Busy

TEXTS = [f"Sentence number {i} is {'long ' * (i % 5)}here." for i in range(23)]
EXTRA = "needs pip install 'rwkvsts[serve]'"


class TestBatcher:
    @staticmethod
    def held(most_waiting: int = 9, most_tokens: int = 10) -> tuple[Batcher, threading.Event, list]:
        """A batcher whose passes wait for the event; items are numbers, rows their doubles."""
        go, passes = threading.Event(), []

        def encode(items: list[Any]) -> np.ndarray:
            go.wait(10)
            passes.append(list(items))
            return 2 * np.array(items, np.float32)[:, None]

        batcher = Batcher({"texts": encode, "ids": encode}, most_tokens, most_waiting)
        return batcher, go, passes

    def submit(self, batcher: Batcher, *jobs: tuple[str, list[int], int]) -> list[Future]:
        """The first job is under way when the others come."""
        futures = [batcher.submit(*jobs[0])]
        while batcher.waiting:
            time.sleep(0.001)
        return futures + [batcher.submit(*job) for job in jobs[1:]]

    def test_what_waits_shares_a_pass_within_the_limit(self) -> None:
        batcher, go, passes = self.held()
        jobs = [("texts", [1], 1), ("texts", [2, 3], 4), ("texts", [4], 4), ("texts", [5], 4)]
        futures = self.submit(batcher, *jobs, ("texts", [6], 99))
        go.set()
        assert [f.result(10).ravel().tolist() for f in futures] == [[2], [4, 6], [8], [10], [12]]
        assert passes == [[1], [2, 3, 4], [5], [6]] and batcher.passes == 4
        batcher.close()

    def test_kinds_do_not_mix_and_a_failure_hits_its_pass_alone(self) -> None:
        batcher, go, _ = self.held(most_tokens=99)
        batcher._encode["ids"] = lambda _: 1 / 0  # type: ignore[assignment]
        futures = self.submit(batcher, ("texts", [1], 1), ("ids", [2], 1), ("texts", [3], 1))
        go.set()
        assert futures[2].result(10).tolist() == [[6]]
        with pytest.raises(ZeroDivisionError):
            futures[1].result(10)
        batcher.close()

    def test_clients_that_come_back_share_a_pass(self) -> None:
        """They do not fall into two groups, of which one waits while the other's pass runs."""

        def encode(items: list[Any]) -> np.ndarray:
            time.sleep(0.2)
            return np.array(items, np.float32)[:, None]

        batcher = Batcher({"texts": encode})

        def client(number: int) -> None:
            for _ in range(8):
                assert batcher.submit("texts", [number], 1).result(10).tolist() == [[number]]

        clients = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for one in clients:
            one.start()
            time.sleep(0.01)  # the first has a pass of its own
        for one in clients:
            one.join()
        assert batcher.passes <= 12  # 9; were none waited for, 1 and 3 would take turns: 16
        batcher.close()

    def test_what_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where much waits already, or after a part of a pass's time, or to close."""
        monkeypatch.setattr(batching, "MUCH", 5)
        monkeypatch.setattr(batching, "PART", 1e6)
        batcher, go, passes = self.held()
        futures = self.submit(batcher, *[("texts", [i], 1) for i in range(2)])
        time.sleep(0.01)
        go.set()
        futures[0].result(10)
        time.sleep(0.1)
        assert not futures[1].done()  # two are waited for, for hours
        assert batcher.submit("texts", [3], 1).result(10).tolist() == [[6]]
        assert batcher.submit("texts", [4], 5).result(10).tolist() == [[8]]
        last = batcher.submit("texts", [5], 1)
        batcher.close()
        assert last.result(0).tolist() == [[10]] and passes == [[0], [1, 3], [4], [5]]
        monkeypatch.setattr(batching, "PART", 0.5)
        batcher, go, passes = self.held()
        futures = self.submit(batcher, *[("texts", [i], 1) for i in range(2)])
        go.set()
        futures[1].result(10)
        assert passes == [[0], [1]]
        batcher.close()

    def test_a_full_queue_and_the_drain(self) -> None:
        batcher, go, _ = self.held(most_waiting=2)
        futures = self.submit(batcher, *[("texts", [i], 1) for i in range(3)])
        with pytest.raises(Busy):
            batcher.submit("texts", [9], 1)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        go.set()
        closing.join(10)
        assert [f.result(0).item() for f in futures] == [0, 2, 4]  # taken means answered
        with pytest.raises(Busy):
            batcher.submit("texts", [9], 1)


@pytest.fixture(scope="module")
def demo() -> RWKV:
    return rwkvsts.load("demo", device="cpu", max_layer=7)


@pytest.fixture(scope="module")
def url(demo: RWKV) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn", reason=EXTRA)
    pytest.importorskip("starlette", reason=EXTRA)
    pytest.importorskip("prometheus_client", reason=EXTRA)
    from rwkvsts.integrations.openai import application

    app = application(demo, layer=7, prompt="Say: {text} !", most_bytes=100_000)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def post(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", content)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class TestEndpoint:
    @pytest.fixture
    def client(self, url: str) -> Any:
        openai = pytest.importorskip("openai", reason="needs pip install openai")
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60)

    def test_the_openai_client_gets_encodes_bits(self, client: Any, demo: RWKV) -> None:
        (name,) = [model.id for model in client.models.list()]
        expected = demo.encode(TEXTS, layers=7, prompt="Say: {text} !", normalize=True)
        for how in ({"encoding_format": "float"}, {"encoding_format": "base64"}, {}):
            answer = client.embeddings.create(model=name, input=TEXTS, **how)
            rows = [
                np.frombuffer(base64.b64decode(d.embedding), "<f4")
                if isinstance(d.embedding, str)
                else np.array(d.embedding, np.float32)
                for d in answer.data
            ]
            assert np.array_equal(rows, expected)
            assert [d.index for d in answer.data] == list(range(len(TEXTS)))
        assert answer.usage.total_tokens == sum(len(demo.tokenizer.encode(t)) for t in TEXTS)
        one = client.embeddings.create(model=name, input=TEXTS[2], dimensions=192)
        assert np.array_equal(np.array(one.data[0].embedding, np.float32), expected[2])
        ids = [demo.tokenizer.encode(text) for text in TEXTS]
        for given, right in ((ids, expected), (ids[4], expected[4:5])):
            answer = client.embeddings.create(model=name, input=given)
            rows = np.array([d.embedding for d in answer.data], np.float32)
            assert np.array_equal(rows, right)

    def test_many_clients_at_once_get_the_same_bits(self, url: str, demo: RWKV) -> None:
        expected = demo.encode(TEXTS, layers=7, prompt="Say: {text} !", normalize=True)

        def ask(i: int) -> bool:
            status, answer = post(url, {"model": demo.name, "input": TEXTS[i % 23]})
            row = np.array(answer["data"][0]["embedding"], np.float32)
            return status == 200 and np.array_equal(row, expected[i % 23])

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(92)))

    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            (b"{", 400, "the body is no JSON"),
            (b"[" * 5000, 400, "the body is no JSON"),
            ([1], 400, "the body is no JSON object"),
            ({"model": "demo"}, 400, "input: expected a text"),
            ({"model": "demo", "input": []}, 400, "input: expected a text"),
            ({"model": "demo", "input": ""}, 400, "input[0] is empty"),
            ({"model": "demo", "input": ["a", ""]}, 400, "input[1] is empty"),
            ({"model": "demo", "input": ["a", 3]}, 400, "input: expected texts alone"),
            ({"model": "demo", "input": [8192]}, 400, "input[0]: expected token ids below 8192"),
            ({"model": "demo", "input": [[1, -1]]}, 400, "token ids below"),
            ({"model": "demo", "input": "\ud800"}, 400, "half a surrogate pair"),
            ({"model": "gpt", "input": "a"}, 404, "there is no model 'gpt': 'demo' is"),
            ({"model": "demo", "input": "a", "dimensions": 64}, 400, "this model has 192"),
            ({"model": "demo", "input": "a", "encoding_format": "int8"}, 400, "expected 'float'"),
            ({"model": "demo", "input": "a", "truncate": True}, 400, "'truncate' is not known"),
            ({"model": "demo", "input": "a" * 200_000}, 413, "longer than 100000 bytes"),
        ],
    )
    def test_refusals_have_openais_form(
        self, url: str, body: Any, status: int, message: str
    ) -> None:
        found, answer = post(url, body)
        assert found == status and message in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"

    def test_health_and_metrics(self, url: str, demo: RWKV) -> None:
        post(url, {"model": demo.name, "input": ["a", "b"]})
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert json.load(answer) == {"status": "ok", "model": "demo", "device": demo.device}
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(metrics['rwkvsts_requests_total{status="200"}']) >= 1
        assert float(metrics["rwkvsts_texts_total"]) >= 2
        assert float(metrics["rwkvsts_passes"]) >= 1 and "rwkvsts_waiting_requests" in metrics

    def test_a_full_queue_answers_429(self, demo: RWKV) -> None:
        testclient = pytest.importorskip("starlette.testclient", reason=EXTRA)
        from rwkvsts.integrations.openai import application

        app = application(demo, layer=7, most_waiting=0)
        with testclient.TestClient(app) as client:
            answer = client.post("/v1/embeddings", json={"model": "demo", "input": "a"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"


def test_dimensions_are_those_of_a_projection(demo: RWKV) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason=EXTRA)
    from rwkvsts import corpus
    from rwkvsts.integrations.openai import application

    fitted = corpus.fit(demo, TEXTS, 12, layers=(5, 7))
    part = fitted.narrow([7])
    rows = demo.encode(TEXTS, layers=[7])
    app = application(demo, layer=7, projection=fitted)
    with testclient.TestClient(app) as client:

        def ask(**more: Any) -> Any:
            return client.post("/v1/embeddings", json={"model": "demo", "input": TEXTS, **more})

        for width, more in ((12, {}), (12, {"dimensions": 12}), (5, {"dimensions": 5})):
            expected = part.narrow(width=width).transform(rows, normalize=True)[:, 0]
            found = [item["embedding"] for item in ask(**more).json()["data"]]
            assert np.array_equal(np.array(found, np.float32), expected)
        ids = [demo.tokenizer.encode(text) for text in TEXTS]
        found = [item["embedding"] for item in ask(input=ids, dimensions=5).json()["data"]]
        assert np.array_equal(np.array(found, np.float32), expected)
        for wrong in (0, 13, 2.0, True, "5"):
            answer = ask(dimensions=wrong)
            assert answer.status_code == 400 and "expected 1 .. 12" in answer.text
    with pytest.raises(rwkvsts.DataError, match="fitted on layers 5,7, not on 6"):
        application(demo, layer=6, projection=fitted)


def test_sigterm_answers_what_was_taken_and_ends_with_status_0(demo: RWKV) -> None:
    for library in ("uvicorn", "starlette", "prometheus_client"):
        pytest.importorskip(library, reason=EXTRA)
    argv = [sys.executable, "-m", "rwkvsts", "serve", "--port", "0", "--layers", "7"]
    root = str(Path(rwkvsts.__file__).parents[1])
    with subprocess.Popen(
        [*argv, "--device", "cpu", "--dtype", demo.dtype],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as running:
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "running on" in line:
                break
        url = line.split("running on ")[1].split()[0]
        text = "word " * 15_000  # a second or so of work
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, url, {"model": "demo", "input": text})
            time.sleep(0.3)  # it is under way
            running.send_signal(signal.SIGTERM)
            status, body = answer.result(60)
        running.stderr.read()
        assert running.wait(60) == 0
    expected = demo.encode(text, layers=7, normalize=True)
    assert status == 200
    assert np.array_equal(np.array(body["data"][0]["embedding"], np.float32), expected)
    assert "served as demo" in lines[0]
