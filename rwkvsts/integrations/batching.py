"""Requests that arrive together share a pass.

While one pass runs, what arrives waits; all that waits, up to a number of tokens, makes the next.
Clients that send their next request when they have an answer come back soon after a pass. Were the
next begun without them, they would fall into two groups that take turns by passes of half the size,
and a small pass costs nearly as much as one of twice its texts. So the next pass waits for as many
requests as were just answered, though no longer than a part of the time that the pass before took,
and not where what waits is much already. What a request shares a pass with changes no bit of its
answer: that a text's embedding depends on that text alone is the model's promise.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Encode = Callable[[list[Any]], Rows]  # texts, or lists of token ids, to [S, C]

PART = 0.25  # of a pass's time that the next one waits for those who were just answered, at most
MUCH = 384  # tokens that wait: a pass that had more of them would hardly cost less a token


class Busy(Exception):
    """No more requests may wait."""


@dataclass
class _Job:
    kind: str  # "texts" or "ids": each kind has its own way into the model
    items: Sequence[Any]
    tokens: int
    rows: Future[Rows] = field(default_factory=Future)


class Batcher:
    """A thread that embeds what is submitted, in the order in which it came.

    Parameters
    ----------
    encode : by kind of item, what embeds a list of them
    most_tokens : of a pass, unless one request alone has more
    most_waiting : requests that may wait
    """

    def __init__(
        self, encode: dict[str, Encode], most_tokens: int = 16384, most_waiting: int = 128
    ) -> None:
        self._encode, self._most_tokens, self._most_waiting = encode, most_tokens, most_waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._much = min(MUCH, most_tokens)
        self._expected, self._tokens = 1, 0  # requests that begin a pass; tokens that wait
        self._closing = False
        self.passes = 0
        self._thread = threading.Thread(target=self._work, name="rwkvsts passes", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    def submit(self, kind: str, items: Sequence[Any], tokens: int) -> Future[Rows]:
        """Embed the items, which hold so many tokens; the future gives float32 [S, C].

        Raises
        ------
        Busy : too many requests wait, or the batcher is closed
        """
        job = _Job(kind, items, tokens)
        with self._changed:
            if self._closing or len(self._jobs) >= self._most_waiting:
                raise Busy
            self._jobs.append(job)
            self._tokens += tokens
            if self._enough():
                self._changed.notify()
        return job.rows

    def close(self) -> None:
        """Take no more, and return when all that was taken is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _enough(self) -> bool:
        """Whether a pass may begin."""
        return self._closing or len(self._jobs) >= self._expected or self._tokens >= self._much

    def _work(self) -> None:
        answered, took = 0, 0.0
        while jobs := self._next(answered, took):
            start = time.monotonic()
            for kind in self._encode:
                self._run([job for job in jobs if job.kind == kind])
            answered, took = len(jobs), time.monotonic() - start

    def _next(self, answered: int, took: float) -> list[_Job]:
        """The requests of the next pass; none when the batcher is closed and empty.

        Parameters
        ----------
        answered, took : how many requests the pass before had, and its seconds
        """
        with self._changed:
            self._expected = max(min(answered + len(self._jobs), self._most_waiting), 1)
            self._changed.wait_for(self._enough, PART * took)
            self._expected = 1
            self._changed.wait_for(self._enough)
            taken: list[_Job] = []
            tokens = 0
            while self._jobs and (not taken or tokens + self._jobs[0].tokens <= self._most_tokens):
                taken.append(self._jobs.popleft())
                tokens += taken[-1].tokens
            self._tokens -= tokens
            return taken

    def _run(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job.rows.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            rows = self._encode[jobs[0].kind]([item for job in jobs for item in job.items])
            self.passes += 1
        except BaseException as error:
            for job in jobs:
                job.rows.set_exception(error)
            return
        first = 0
        for job in jobs:
            job.rows.set_result(rows[first : first + len(job.items)])
            first += len(job.items)
