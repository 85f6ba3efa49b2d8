"""A real worker that kills itself at one exact moment: `DIE_AT=effect-done:cloudsuite.state`, once.

The moments of a step: `claiming` (before the claim of a message's first link), `claimed` (before the effect),
`effect-done` (before the record) and `recorded` (the next step is claimed with it: between two fused links).
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ledger import records
from tasks.base import STEPS, Job
from workers.bootstrap import build_fleet  # noqa: F401 - registers every step
from workers.cli import main

MOMENT, _, STEP = os.environ["DIE_AT"].partition(":")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function: Callable[[Job, Any], Any]) -> Callable[[Job, Any], Any]:
    def run(job: Job, partner: Any) -> Any:
        if MOMENT == "claimed":
            die()
        outcome = function(job, partner)
        if MOMENT == "effect-done":
            die()
        return outcome

    return run


def claim(ledger: Any, order_id: int, position: int, step: str, worker: str) -> Any:
    if MOMENT == "claiming" and step == STEP:
        die()
    return _claim(ledger, order_id, position, step, worker)


def done(ledger: Any, held: records.Claim, *rest: Any) -> Any:
    recorded = _done(ledger, held, *rest)
    if MOMENT == "recorded" and held.step == STEP:
        die()
    return recorded


_claim, _done = records.claim, records.done
records.claim, records.done = claim, done  # type: ignore[assignment]
STEPS[STEP] = dying(STEPS[STEP])
sys.argv = ["orderfleet", "worker"]
main()
