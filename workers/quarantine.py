"""An order that workers died on runs in a process of its own. Should it kill that one too, it is parked, and nobody
else is harmed; a worker that was killed for another reason proves nothing against the orders it held."""

import subprocess
import sys

import structlog

from ledger import leases, records
from ledger.records import Claim
from orders.states import State
from tasks.bulkhead import Bulkhead
from tasks.gates import Gates
from tasks.pulse import Pulse
from tasks.runner import Ending, Runner
from workers.bootstrap import build_fleet
from workers.settings import Settings

COMMAND = "run-alone"
"""The hidden command of `orderfleet` that `run_alone` serves."""

log = structlog.get_logger(__name__)


def run_in_quarantine(runner: Runner, claim: Claim) -> Ending:
    """Have a process of its own run the claimed step, and wait for it. In the worker."""
    command = [sys.executable, "-m", "workers", COMMAND, str(claim.id), str(claim.fence)]
    log.warning("a suspect runs alone", action="quarantine", order=claim.id, step=claim.step, crashes=claim.crashes)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:  # noqa: S603 - our own program and numbers
        try:
            code = child.wait(leases.STEP_LIMIT)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
    return runner.quarantined(claim, killed_by=-code if code < 0 else None)


def run_alone(settings: Settings, worker: str, order_id: int, fence: int) -> None:
    """Take the claim on and run its step. In the process of its own."""
    pulse_of: list[Pulse] = []
    fleet = build_fleet(settings, before_write=lambda: pulse_of[0].check())
    pulse_of.append(Pulse(fleet.ledger, worker))
    pulse = pulse_of[0]
    pulse.start()
    try:
        claim = records.take_on(fleet.ledger, order_id, fence, worker)
        if claim is not None:
            gates = Gates(fleet.ledger, Bulkhead(1))
            gates.refresh()
            Runner(fleet, pulse, gates).run(claim, lambda position, step: State.READY)
    finally:
        pulse.stop()
