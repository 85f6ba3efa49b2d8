"""Where a process spends its CPU time: each thread's stack, looked at every few milliseconds, weighed by what the
thread used since the last look.

A look needs the interpreter's lock, which a thread gives up where it waits for a socket: functions that do are seen
too often, so that only sums over whole parts of the program mean something.
"""

import sys
import threading
import time
from collections import defaultdict
from types import FrameType

INTERVAL = 0.005
SWITCH = 0.0005
"""Seconds after which a running thread makes room for the look, instead of Python's own 5 ms."""

Stack = tuple[str, ...]
"""Innermost first: "module:function"."""


class Sampler:
    """Looks at all threads of this process but its own; `seconds` of CPU time by stack."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Stack, float] = defaultdict(float)
        self._used: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        sys.setswitchinterval(SWITCH)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            for thread, frame in sys._current_frames().items():
                if thread != threading.get_ident():
                    self._look(thread, frame)

    def _look(self, thread: int, frame: FrameType) -> None:
        used = time.clock_gettime(time.pthread_getcpuclockid(thread))
        since = used - self._used.get(thread, used)
        self._used[thread] = used
        if since > 0.0:
            self.seconds[_stack(frame)] += since


def _stack(frame: FrameType | None) -> Stack:
    names = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return tuple(names)
