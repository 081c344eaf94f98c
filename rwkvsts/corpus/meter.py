"""How far a job is: a bar on a terminal, elsewhere a line of JSON a minute on standard error."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ..progress import bar, say

EVERY = 60.0  # seconds between two lines


class Meter:
    """Progress by tokens, which take equal time as texts do not.

    How many tokens there will be is estimated from the bytes of text left.

    Parameters
    ----------
    text_bytes : of the whole input
    done_bytes : of these, in shards that stood before
    every : seconds between two lines
    """

    def __init__(self, text_bytes: int, done_bytes: int, every: float = EVERY) -> None:
        self._total, self._before = text_bytes, done_bytes
        self._bytes = 0.0
        self._every, self._told = every, time.monotonic()
        self._start = self._told
        self.texts, self.tokens = 0, 0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Meter:
        if self._terminal:
            self._bar = bar(unit=" tokens", unit_scale=True, smoothing=0.1, mininterval=0.25)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def update(self, texts: int, tokens: int, size: float) -> None:
        """So many more texts, tokens and bytes of text are embedded."""
        self.texts += texts
        self.tokens += tokens
        self._bytes += size
        self.within(0, 0, 0)

    def within(self, texts: int, tokens: int, size: float) -> None:
        """So many of those that `update` will count next are embedded already."""
        texts, tokens, done = self.texts + texts, self.tokens + tokens, self._bytes + size
        left = round(max(self._total - self._before - done, 0) * tokens / max(done, 1))
        if self._bar is not None:
            self._bar.total = tokens + left
            self._bar.set_postfix_str(f"{texts / self.seconds:.0f} texts/s", refresh=False)
            self._bar.update(tokens - self._bar.n)
        elif time.monotonic() - self._told >= self._every:
            self._told = time.monotonic()
            say(json.dumps(self._line(texts, tokens, done, left)))

    def _line(self, texts: int, tokens: int, done: float, left: int) -> dict[str, float]:
        rate = tokens / self.seconds
        return {
            "seconds": round(self.seconds, 1),
            "texts": texts,
            "tokens": tokens,
            "texts_per_second": round(texts / self.seconds, 1),
            "tokens_per_second": round(rate, 1),
            "share_done": round((self._before + done) / max(self._total, 1), 4),
            "seconds_left": round(left / rate) if rate else 0,
        }
