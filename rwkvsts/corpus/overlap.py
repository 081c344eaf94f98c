"""Work done ahead of who uses it, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
WAIT = 0.1  # seconds between two looks at whether anybody still wants the next item


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The items, of which up to `depth` are ready before they are asked for.

    An exception of the items is raised where the item would have come. When the iterator is closed
    the thread ends, at the latest with the item it is working on.
    """
    ready: Queue[tuple[str, T | BaseException | None]] = Queue(depth)
    closed = threading.Event()

    def put(kind: str, item: T | BaseException | None) -> None:
        while not closed.is_set():
            try:
                ready.put((kind, item), timeout=WAIT)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if closed.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="rwkvsts reading", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        while thread.is_alive():
            try:
                ready.get_nowait()
            except Empty:
                thread.join(WAIT)
