"""The endpoint under load on loopback: throughput beside encode's, latency at p50 and p99.

    python bench/serve.py [--clients 1,4,16,64] [--requests 256] [--turns 3] [--device cpu|cuda]
                          [--model demo]

Each client has a connection of its own and sends its next request, one text of a sentence's length,
when the one before is answered. The clients are threads of a process of their own, which shares
this machine with the server; "CPU" is what a request costs each of the two in processor time. As
many texts as there are clients are the most that can share a pass, so encode is called with so many
at a time. It and the clients take turns; the best throughput of each counts, and what else was
measured in that turn. Every row is compared with encode's to the bit.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

import rwkvsts
from rwkvsts.integrations.openai import application

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while"]


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, int(rng.integers(8, 30)))) for _ in range(count)]


def client(port: int, name: str, texts: list[str]) -> tuple[list[float], list[np.ndarray]]:
    """Seconds and vector of each text, one request after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times, rows = [], []
    for text in texts:
        body = json.dumps({"model": name, "input": text, "encoding_format": "base64"})
        start = time.perf_counter()
        connection.request("POST", "/v1/embeddings", body)
        answer = json.load(connection.getresponse())
        times.append(time.perf_counter() - start)
        rows.append(np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4"))
    connection.close()
    return times, rows


Answers = list[tuple[list[float], list[np.ndarray]]]


def load(port: int, name: str, texts: list[str], count: int) -> tuple[float, float, Answers]:
    """Seconds and processor seconds of so many clients for all texts, and what each found."""
    start, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(count) as pool:
        parts = [texts[i::count] for i in range(count)]
        found = list(pool.map(lambda part: client(port, name, part), parts))
    return time.perf_counter() - start, time.process_time() - processor, found


def encoded(model: rwkvsts.RWKV, texts: list[str], layer: int, count: int) -> tuple[float, Any]:
    """Texts a second by calls of so many texts, and the rows."""
    start = time.perf_counter()
    rows = [
        model.encode(texts[i : i + count], layers=layer, normalize=True)
        for i in range(0, len(texts), count)
    ]
    return len(texts) / (time.perf_counter() - start), np.concatenate(rows)


def passes(port: int) -> float:
    """How many passes the endpoint has made."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(float(line.split()[1]) for line in lines if line.startswith("rwkvsts_passes "))


@contextmanager
def served(model: rwkvsts.RWKV, layer: int) -> Iterator[int]:
    """The endpoint's port."""
    app = application(model, layer=layer, most_waiting=1024)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    model = rwkvsts.load(args.model, device=args.device, max_layer=args.layer)
    texts = sentences(args.requests)
    print(f"{model}: {len(texts)} texts")
    with (
        served(model, args.layer) as port,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        for count in map(int, args.clients.split(",")):
            alone, rate, same = 0.0, 0.0, True
            for _ in range(args.turns):
                reached, expected = encoded(model, texts, args.layer, count)
                alone, before, start = max(alone, reached), passes(port), time.process_time()
                taken, theirs, found = process.submit(
                    load, port, model.name, texts, count
                ).result()
                ours = time.process_time() - start
                same &= all(np.array_equal(r, expected[i::count]) for i, (_, r) in enumerate(found))
                if len(texts) / taken > rate:
                    rate = len(texts) / taken
                    times = np.array([t for part, _ in found for t in part]) * 1e3
                    cost = 1e3 * ours / len(texts), 1e3 * theirs / len(texts)
                    shared = len(texts) / (passes(port) - before)
            print(
                f"{count:4} clients: {rate:7.0f} texts/s by {shared:.1f} a pass, "
                f"{100 * rate / alone:.0f} % of encode's {alone:.0f}; p50 "
                f"{np.percentile(times, 50):.1f} ms, p99 {np.percentile(times, 99):.1f} ms; CPU "
                f"{cost[0]:.2f} ms, clients {cost[1]:.2f} ms; "
                f"{'the bits of encode' if same else 'OTHER BITS'}"
            )


if __name__ == "__main__":
    main()
