"""A slow remote may hold most of a worker's threads, but never the last ones: others get their turn."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable

SLOW = 2.0
"""Seconds after which a step counts as slow: a remote that answers fast may use every thread."""
CROWDED_FOR = 10.0
"""Seconds for which a crowded lane gets no more orders than it has threads."""


class Bulkhead:
    """Which of this worker's `threads` are at work for which lane. Thread-safe; `clock` counts seconds."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = max(1, threads - max(1, threads // 4))
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[str, dict[int, float]] = defaultdict(dict)
        self._crowded: dict[str, float] = {}

    def enter(self, lane: str) -> bool:
        """Take this thread for `lane`; False when the lane is slow and has its share of threads already."""
        now = self._clock()
        with self._lock:
            began = self._began[lane]
            if len(began) >= self._most and min(began.values()) < now - SLOW:
                self._crowded[lane] = now
                return False
            began[threading.get_ident()] = now
        return True

    def leave(self, lane: str) -> None:
        """This thread is free again."""
        with self._lock:
            self._began[lane].pop(threading.get_ident(), None)

    def room(self, lane: str, window: int) -> int:
        """How many orders may be sent to `lane` at once: the window, unless it is crowded."""
        if self._clock() - self._crowded.get(lane, float("-inf")) > CROWDED_FOR:
            return window
        return max(0, self._most - len(self._began[lane]))
