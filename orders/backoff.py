"""When to try again: pure functions of what happened so far."""

BASE = 2.0
CAP = 900.0
MOST_FAILURES = 12
MOST_BUGS = 4
MOST_CRASHES = 3
"""Processes that an order may take down, the last one its own, before it is parked."""
MOST_LOST = 12
"""Workers lost on a step before the order is parked though nothing is proven: it may take whole machines down."""


def delay(failures: int, chance: float, *, after: float | None = None, base: float = BASE, cap: float = CAP) -> float:
    """Seconds until the next try: exponential with full jitter; what the remote asked for (`after`) wins.

    `failures` counts this one (1 for the first), `chance` is a number in [0, 1). At least a tenth of a second, so
    that a retry never becomes a busy loop.
    """
    if after is not None:
        return max(after, 0.1)
    return max(min(cap, base * 2.0 ** min(failures - 1, 30)) * chance, 0.1)


def closed_for(closures: int, chance: float, *, after: float | None = None) -> float:
    """Seconds a remote is left alone after its `closures`-th failure in a row: 2, 4, 8 ... 60, less up to a quarter."""
    if after is not None:
        return max(after, 0.1)
    return min(60.0, 2.0 ** min(closures, 10)) * (0.75 + chance / 4)
