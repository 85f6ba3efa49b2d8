"""Ends the processes of a supervisor that has died without doing so itself: the one thing it cannot do.

A process of its own, without a library of ours or others, that reads "+GROUP" and "-GROUP" lines (process groups) from
a pipe. The pipe ends when the supervisor does, however that came about; what it still lists then is ended. Works
wherever there are process groups, and with children that know nothing of it."""

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

GRACE = 3.0
"""Seconds between asking and killing: the broker is going, too, so there is little left to finish."""


def main() -> None:
    """Serve one supervisor, whose pipe is our stdin."""
    for ours in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)  # whoever asks everybody to stop: we go last
    end(read_groups(sys.stdin.buffer))


def read_groups(lines: Iterable[bytes]) -> set[int]:
    """The groups that are still there when the pipe ends."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    return groups


def end(groups: set[int], grace: float = GRACE) -> None:
    """Ask these process groups to stop, and kill those that have not after `grace` seconds."""
    left = {group for group in groups if send(group, signal.SIGTERM)}
    until = time.monotonic() + grace
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left = {group for group in left if send(group, 0)}
    for group in left:
        send(group, signal.SIGKILL)


def send(group: int, number: int) -> bool:
    """Whether there was still somebody in the group to get the signal."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses signals to a group of zombies
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    main()
