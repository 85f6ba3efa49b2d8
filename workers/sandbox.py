"""The sandbox process: small imitations of the remote systems, orders that keep arriving, and somebody who plays the
ERP. Beside `cli` and `up` the only place that knows the imitations."""

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import structlog

from sandbox import base, erp
from workers.systems import NAMES

RATE = 5.0
"""Orders a second, over all imitations. About one in ten is odd: unpaid, offline, a twin, unknown goods."""
FAULTS = 0.03
"""The share of requests that misbehave."""
KINDS_OF_FAULT = ("500_before", "500_after", "lost_answer", "429", "slow")
SHIP_AFTER_SECONDS = 3.0

log = structlog.get_logger(__name__)


FLEET = {"ERP_POLL_SECONDS": "1"}
"""What the fleet is told beside the systems' own settings."""


def fleet_settings(ports: Mapping[str, int]) -> dict[str, str]:
    """The environment that points a fleet at the imitations on these ports of loopback, by system."""
    environment = dict(FLEET)
    for system, port in ports.items():
        environment |= imitation(system).fleet_settings(f"http://127.0.0.1:{port}")
    return environment


def imitation(system: str) -> Any:
    """The module that imitates a system: `create_app()`, `fleet_settings(url)`, `point_at(app, web)` if it sends
    something by itself, and `WEIGHT` if it gets more or fewer orders than others (1). Looked up by name, like the
    system's other files."""
    return import_module(f"sandbox.{system}")


def _shares() -> dict[str, float]:
    """Of the orders that arrive, those of each system; together 1."""
    weights = {system: getattr(imitation(system), "WEIGHT", 1.0) for system in NAMES}
    return {system: weight / sum(weights.values()) for system, weight in weights.items()}


def run_sandbox(
    *,
    ports: Mapping[str, int] | None = None,
    rate: float = RATE,
    faults: float = FAULTS,
    erp_url: str | None = None,
    web: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run the imitations until told to stop (SIGTERM, SIGINT), and print the settings that point a fleet at them.

    `ports`: by system, those left out get a free one. `rate`: orders a second over all systems (0: none come).
    `faults`: the share of requests that misbehave. `erp_url`: the staging tables on which to play the ERP. `web`: the
    fleet's web server, where webhooks go."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *told: stop.set())
    shares = _shares()
    with ExitStack() as stack:
        listening = {}
        for system in NAMES:
            server = _serve(imitation(system), (ports or {}).get(system, 0), rate * shares[system], faults, web)
            stack.callback(server.stop)
            listening[system] = server.port
        _introduce(listening, rate, faults, erp_url, say)
        if erp_url is None:
            stop.wait()
        else:
            erp.run(erp_url, stop, ship_after_seconds=SHIP_AFTER_SECONDS)


def _serve(system: Any, port: int, rate: float, faults: float, web: str | None) -> base.Server:
    app = system.create_app()
    control = base.control_of(app)
    server = base.serve(app, port=port)
    if web is not None and hasattr(system, "point_at"):
        system.point_at(app, web)
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
