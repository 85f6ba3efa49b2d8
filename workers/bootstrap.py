"""How a process's collaborators are built from its settings."""

import time
from collections.abc import Callable, Mapping

import tasks.erp  # noqa: F401 - registers the ERP's steps
from erp.port import open_erp
from ledger import remotes
from ledger.connection import Ledger
from orders.errors import Unavailable
from orders.lanes import ERP, lane_of
from tasks.base import Fleet
from workers.settings import AccountSettings, Settings
from workers.systems import SYSTEMS
from workers.systems.base import Wiring

LONGEST_PACE = 5.0
"""Seconds a call may wait for its turn under a rate limit; beyond that the order goes back to the ledger."""


def build_fleet(
    settings: Settings,
    *,
    before_write: Callable[[], None] = lambda: None,
    systems: Mapping[str, Wiring] = SYSTEMS,
) -> Fleet:
    """Ledger, ERP and a client per account, not yet connected.

    `before_write` is called before every request that changes something; it raises `Fenced` when this process has
    lost its lease."""
    ledger = Ledger(settings.database_url, pool_size=settings.concurrency + 4)
    erp = open_erp(settings.erp_url, pool_size=settings.concurrency + 2)
    accounts = {}
    for one in settings.accounts:
        build = systems[one.system].build
        accounts[one.system, one.name] = build(
            one,
            pool_size=settings.concurrency,
            pace=_pace(ledger, one),
            before_write=before_write,
        )
    return Fleet(
        ledger=ledger,
        erp=erp,
        accounts=accounts,
        systems={name: systems[name].system for name in settings.systems},
        erp_poll_seconds=settings.erp_poll_seconds,
        lanes=lanes_of(settings),
    )


def lanes_of(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Every (system, lane) there is: one for each account, and the ERP's for each system."""
    own = [(one.system, lane_of(one.system, one.name, None)) for one in settings.accounts]
    return (*own, *((system, ERP) for system in settings.systems))


def _pace(ledger: Ledger, settings: AccountSettings) -> Callable[[], None]:
    """Nothing, or a wait for this account's next call under the rate that all workers share."""
    if settings.rate is None:
        return lambda: None
    interval = 1.0 / settings.rate
    lane = lane_of(settings.system, settings.name, None)

    def pace() -> None:
        wait = remotes.take_call(ledger, lane, interval, LONGEST_PACE)
        if wait > LONGEST_PACE:
            raise Unavailable(f"{settings.system} may be called {settings.rate:g} times a second", after=wait)
        time.sleep(wait)

    return pace
