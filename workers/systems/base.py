"""How a system is wired into the processes: what its own file in this folder states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint

from ledger.connection import Ledger
from tasks.base import Account, System
from webhooks.base import Receiver
from workers.reading import AccountReader, AccountSettings


@dataclass(frozen=True, slots=True)
class Inbound:
    """What a system needs that answers more than webhooks: its accounts, the ledger, and `ring(system, order ids)`,
    to be called after the commit: it has the orders sent soon, and never waits."""

    accounts: Sequence[AccountSettings]
    ledger: Ledger
    ring: Callable[[str, Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class Wiring:
    """One system.

    `poll_seconds`, `timeout`: the defaults of `<SYSTEM>_POLL_SECONDS` and `<SYSTEM>_TIMEOUT`. `read` reads the settings
    that only this system has, of one account. `build(settings, pool_size=, pace=, before_write=)` makes the account
    with its client; it connects to nothing. `receiver` proves and reads its webhooks; `blueprint` answers under URLs of
    its own. An account counts as configured when any of `switches` is set."""

    system: System
    poll_seconds: float
    read: Callable[[AccountReader], Mapping[str, Any]]
    build: Callable[..., Account]
    receiver: Callable[[Sequence[AccountSettings]], Receiver] | None = None
    blueprint: Callable[[Inbound], Blueprint] | None = None
    switches: tuple[str, ...] = ("URL",)
    timeout: float = 20.0
