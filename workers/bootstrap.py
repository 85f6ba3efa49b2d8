"""The list of systems, and how a process's collaborators are built from its settings."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tasks.cloudsuite
import tasks.erp  # registers the ERP's steps
from clients.base import Auth, OAuthClientCredentials, StaticToken
from clients.cloudsuite import CloudSuite
from erp.port import open_erp
from ledger import records
from ledger.connection import Ledger
from orders.errors import Unavailable
from orders.lanes import ERP, lane_of
from tasks.base import Account, Fleet, System
from workers.settings import AccountSettings, Settings

LONGEST_PACE = 5.0
"""Seconds a call may wait for its turn under a rate limit; beyond that the order goes back to the ledger."""


def _cloudsuite(settings: AccountSettings, **common: Any) -> Account:
    options = dict(settings.options)
    token, client_id = options.pop("token"), options.pop("client_id")
    secret, token_url = options.pop("client_secret"), options.pop("token_url")
    auth: Auth = (
        StaticToken("Authorization", f"Token {token}")
        if token is not None
        else OAuthClientCredentials(token_url, client_id, secret, scope="openid")
    )
    client = CloudSuite(settings.url, auth=auth, timeout=settings.timeout, **common)
    return Account("cloudsuite", settings.name, client, tasks.cloudsuite.Options(**options), settings.poll_seconds)


SYSTEMS: dict[str, tuple[System, Callable[..., Account]]] = {
    "cloudsuite": (tasks.cloudsuite.SYSTEM, _cloudsuite),
}
"""The list of systems: a sixth is added here."""


def build_fleet(
    settings: Settings,
    *,
    before_write: Callable[[], None] = lambda: None,
    systems: Mapping[str, tuple[System, Callable[..., Account]]] = SYSTEMS,
) -> Fleet:
    """Ledger, ERP and a client per account, not yet connected.

    `before_write` is called before every request that changes something; it raises `Fenced` when this process has
    lost its lease."""
    ledger = Ledger(settings.database_url, pool_size=settings.concurrency + 4)
    erp = open_erp(settings.erp_url, pool_size=settings.concurrency + 2)
    accounts = {}
    for one in settings.accounts:
        build = systems[one.system][1]
        accounts[one.system, one.name] = build(
            one,
            pool_size=settings.concurrency,
            pace=_pace(ledger, one),
            before_write=before_write,
        )
    lanes = [(one.system, lane_of(one.system, one.name, None)) for one in settings.accounts]
    lanes += [(system, ERP) for system in settings.systems]
    return Fleet(
        ledger=ledger,
        erp=erp,
        accounts=accounts,
        systems={name: systems[name][0] for name in settings.systems},
        erp_poll_seconds=settings.erp_poll_seconds,
        lanes=tuple(lanes),
    )


def _pace(ledger: Ledger, settings: AccountSettings) -> Callable[[], None]:
    """Nothing, or a wait for this account's next call under the rate that all workers share."""
    if settings.rate is None:
        return lambda: None
    interval = 1.0 / settings.rate
    lane = lane_of(settings.system, settings.name, None)

    def pace() -> None:
        wait = records.take_call(ledger, lane, interval, LONGEST_PACE)
        if wait > LONGEST_PACE:
            raise Unavailable(f"{settings.system} may be called {settings.rate:g} times a second", after=wait)
        time.sleep(wait)

    return pace
