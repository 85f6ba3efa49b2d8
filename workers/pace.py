"""Reads that cost more the more there is to read are repeated no more often than their cost allows."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

SHARE = 0.05
"""How much of the time a read may take, of one thread and of the database."""


class Paced(Generic[Value]):
    """`value()` is fresh to `at_least` seconds while `read` is quick, and older the longer `read` takes."""

    def __init__(
        self,
        read: Callable[[], Value],
        *,
        at_least: float = 0.9,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._at_least = at_least
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: tuple[Value] | None = None
        self._due = float("-inf")

    def value(self) -> Value:
        """What was read last, or a new reading if that is due. Raises what `read` raises."""
        with self._lock:
            if self._kept is None or self._clock() >= self._due:
                began = self._clock()
                self._kept = (self._read(),)
                self._due = self._clock() + max(self._at_least, (self._clock() - began) / self._share)
            return self._kept[0]
