"""The endpoint under load on loopback: throughput beside encode's, latency at p50 and p99.

    python bench/serve.py [--clients 1,4,16,64] [--requests 256] [--turns 3] [--device cpu|cuda]
                          [--model demo]

Each client has a connection of its own and sends its next request, one text of a sentence's length,
when the one before is answered. Server and clients share this machine, and the clients are threads
of one process, so the throughput is a floor. encode and clients take turns; the best throughput of
each counts, and the latencies of that turn. Every row is compared with encode's to the bit.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


def load(port: int, name: str, texts: list[str], count: int) -> tuple[float, Answers]:
    """Seconds that so many clients took for all texts, and what each found."""
    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        parts = [texts[i::count] for i in range(count)]
        found = list(pool.map(lambda part: client(port, name, part), parts))
    return time.perf_counter() - start, found


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
    model.encode(texts[:32], layers=args.layer)
    app = application(model, layer=args.layer, most_waiting=1024)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(f"{model}: {len(texts)} texts")
    for count in map(int, args.clients.split(",")):
        alone, rate, same = 0.0, 0.0, True
        for _ in range(args.turns):
            start = time.perf_counter()
            expected = model.encode(texts, layers=args.layer, normalize=True)
            alone = max(alone, len(texts) / (time.perf_counter() - start))
            taken, found = load(port, model.name, texts, count)
            same &= all(np.array_equal(r, expected[i::count]) for i, (_, r) in enumerate(found))
            if len(texts) / taken > rate:
                rate = len(texts) / taken
                times = np.array([t for part, _ in found for t in part]) * 1e3
        print(
            f"{count:4} clients: {rate:7.0f} texts/s, {100 * rate / alone:.0f} % of encode's "
            f"{alone:.0f}; p50 {np.percentile(times, 50):.1f} ms, p99 "
            f"{np.percentile(times, 99):.1f} ms, "
            f"{'the bits of encode' if same else 'OTHER BITS'}"
        )
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
