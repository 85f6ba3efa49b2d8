"""The sandbox process: small imitations of the remote systems, orders that keep arriving, and somebody who plays the
ERP. Beside `cli` and `up` the only place that knows the imitations."""

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import structlog
from flask import Flask

from sandbox import base, cloudsuite, erp

RATE = 1.5
"""Orders a second, over all imitations. About one in ten is odd: unpaid, offline, a twin, unknown goods."""
FAULTS = 0.03
"""The share of requests that misbehave."""
KINDS_OF_FAULT = ("500_before", "500_after", "lost_answer", "429", "slow")
SHIP_AFTER_SECONDS = 3.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Imitation:
    """One system: its application, and the settings that point a fleet at `url`."""

    create: Callable[[], Flask]
    settings: Callable[[str], dict[str, str]]


def _cloudsuite(url: str) -> dict[str, str]:
    known = cloudsuite.Options()
    return {
        "CLOUDSUITE_URL": url,
        "CLOUDSUITE_TOKEN_URL": url + cloudsuite.TOKEN_PATH,
        "CLOUDSUITE_CLIENT_ID": known.client_id,
        "CLOUDSUITE_CLIENT_SECRET": known.client_secret,
        "CLOUDSUITE_POLL_SECONDS": "2",
    }


IMITATIONS: dict[str, Imitation] = {
    "cloudsuite": Imitation(cloudsuite.create_app, _cloudsuite),
}
"""By system: a sixth is added here."""

FLEET = {"ERP_POLL_SECONDS": "1"}
"""What the fleet is told beside the systems' own settings."""


def fleet_settings(ports: Mapping[str, int]) -> dict[str, str]:
    """The environment that points a fleet at the imitations on these ports of loopback, by system."""
    environment = dict(FLEET)
    for system, port in ports.items():
        environment |= IMITATIONS[system].settings(f"http://127.0.0.1:{port}")
    return environment


def run_sandbox(
    *,
    ports: Mapping[str, int] | None = None,
    rate: float = RATE,
    faults: float = FAULTS,
    erp_url: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run the imitations until told to stop (SIGTERM, SIGINT), and print the settings that point a fleet at them.

    `ports`: by system, those left out get a free one. `rate`: orders a second over all systems (0: none come).
    `faults`: the share of requests that misbehave. `erp_url`: the staging tables on which to play the ERP."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *told: stop.set())
    with ExitStack() as stack:
        listening = {}
        for system, imitation in IMITATIONS.items():
            server = _serve(imitation, (ports or {}).get(system, 0), rate / len(IMITATIONS), faults)
            stack.callback(server.stop)
            listening[system] = server.port
        _introduce(listening, rate, faults, erp_url, say)
        if erp_url is None:
            stop.wait()
        else:
            erp.run(erp_url, stop, ship_after_seconds=SHIP_AFTER_SECONDS)


def _serve(imitation: Imitation, port: int, rate: float, faults: float) -> base.Server:
    app = imitation.create()
    control = base.control_of(app)
    server = base.serve(app, port=port)
    if faults > 0:
        control.faults.set([base.FaultRule(rate=faults, kinds=KINDS_OF_FAULT)])
    if rate > 0:
        control.arrivals.start(rate)
    return server


def _introduce(
    ports: dict[str, int], rate: float, faults: float, erp_url: str | None, say: Callable[[str], Any]
) -> None:
    coming = f"{rate:g} orders a second arrive" if rate > 0 else "no orders arrive by themselves"
    say(f"# {', '.join(ports)}: {coming}, {faults:.0%} of the requests misbehave; POST /_sandbox/... changes that.")
    if erp_url is None:
        say("# Nobody plays the ERP: give --erp-url to have its staging tables worked on.")
    else:
        say("# The ERP is played on the staging tables: it numbers, refuses and ships.")
    say("# Point a fleet at this with:")
    for name, value in fleet_settings(ports).items():
        say(f"export {name}={value}")
