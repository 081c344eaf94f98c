"""What a state of each text's own saves: branches, echo and states beside the plain way.

    python bench/branches.py [--model demo] [--device cpu] [--pairs 100] [--repeat 5]

Each figure is milliseconds a text, the fastest of the repetitions, taken in turns so that a
neighbour on the machine meets all of them alike. Texts are the bundled pairs, a suffix some ten
tokens, so that eight suffixes are MetaEOL's case. The plain way reads the prefix before each text
and each text anew for every suffix; to an echo it takes a state and a call for each text. "same
bits" compares what both give; on CUDA they may differ by rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import rwkvsts
from rwkvsts.data import datasets

PREFIX = "Say in one word what the sentence means that follows here:\n"
SUFFIXES = [f' In the words of {who}, it means in one word: "' for who in ("a", "b", "c", "d")]
SUFFIXES += [f' As a matter of {what}, it says in one word: "' for what in ("e", "f", "g", "h")]

Way = Callable[[], np.ndarray]


def ways(m: rwkvsts.RWKV, texts: list[str], layer: int) -> dict[str, tuple[Way, Way | None]]:
    """By name: the way with states, and the plain way to the same vectors."""
    how = {"layers": layer, "show_progress": False}

    def plain(count: int) -> np.ndarray:
        each = [
            m.encode(texts, pooling="last", prompt="{text}" + s, **how) for s in SUFFIXES[:count]
        ]
        return np.stack(each, axis=1)

    def echo_from_states() -> np.ndarray:
        """The plain way to an echo: a state a text, one text a call."""
        rows = [m.encode(text, state=m.state(text + " "), **how) for text in texts]
        return np.array(rows)

    ends = {"pooling": "last", **how}
    after = [PREFIX + text for text in texts]
    return {
        "a prefix": (
            lambda: m.encode(texts, prompt=PREFIX + "{text}", **ends),
            lambda: m.encode(after, **ends),
        ),
        "one reading": (lambda: m.encode(texts, **how), None),
        "1 suffix": (lambda: m.branch(texts, SUFFIXES[:1], **how), lambda: plain(1)),
        "8 suffixes": (lambda: m.branch(texts, SUFFIXES, **how), lambda: plain(8)),
        "echo": (lambda: m.encode(texts, prompt="{text} {text}", **how), echo_from_states),
        "state, 1024 wide": (lambda: m.encode_states(texts, layer, show_progress=False), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    pairs = datasets.load("demo")
    texts = pairs.sentence1[: args.pairs] + pairs.sentence2[: args.pairs]
    m = rwkvsts.load(args.model, device=args.device, dtype=args.dtype)
    layer = m.config.n_layer - 1
    listed = ways(m, texts, layer)
    best: dict[tuple[str, int], float] = {}
    for _ in range(args.repeat + 1):  # the first is the warm-up
        for name, both in listed.items():
            for i, way in enumerate(both):
                if way is None:
                    continue
                start = time.perf_counter()
                way()
                spent = 1e3 * (time.perf_counter() - start) / len(texts)
                first = (name, i) not in best
                best[name, i] = np.inf if first else min(best[name, i], spent)
    print(f"{m!r}; {len(texts)} texts, layer {layer}, ms a text")
    print(f"{'':18}{'from states':>12}{'plain':>12}  same bits")
    for name, (shared, plain_way) in listed.items():
        other = f"{best[name, 1]:12.3f}" if plain_way else " " * 12
        same = str(np.array_equal(shared(), plain_way())) if plain_way else ""
        print(f"{name:18}{best[name, 0]:12.3f}{other}  {same}")


if __name__ == "__main__":
    main()
