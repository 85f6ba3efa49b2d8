"""Rings for the workers after a commit: what has just come in is seen to soon, and nobody waits for the broker.

A ring names no order. It has a worker fill its window from the ledger, which costs the web process one message for all
that came in since the last one. Whatever is not rung for, the workers find by themselves a second later; so this may
forget, but it may never block."""

import threading
from collections.abc import Callable, Iterable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from ledger import queries
from ledger.connection import Ledger
from tasks.dispatch import BrokerAway
from workers.celery import build_app, send_fill, send_news
from workers.settings import Settings

EVERY = 0.05
"""Seconds between two rings, at least."""
PATIENCE = 5.0
"""Seconds for which nothing is sent after the broker was found to be away."""

log = structlog.get_logger(__name__)


class Bell:
    """One process's bell. Its thread starts with the first ring, never before a fork.

    `fill()` has a worker look for orders that are ready, `tell_news(system, account)` for news of known ones."""

    def __init__(
        self,
        fill: Callable[[], object],
        tell_news: Callable[[str, str], object],
        *,
        every: float = EVERY,
        patience: float = PATIENCE,
    ) -> None:
        self._fill = fill
        self._tell_news = tell_news
        self._every = every
        self._patience = patience
        self._orders = False
        self._news: set[tuple[str, str]] = set()
        self._rung = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def ring(self, system: str, order_ids: Sequence[int]) -> None:
        """These orders are ready. Returns at once."""
        if order_ids:
            with self._rung:
                self._orders = True
                self._wake()

    def news(self, system: str, accounts: Iterable[str]) -> None:
        """There is news of known orders of these accounts. Returns at once."""
        told = {(system, account) for account in accounts}
        if told:
            with self._rung:
                self._news |= told
                self._wake()

    def stop(self) -> None:
        """Ring for what is left, and end the thread."""
        self._stopped.set()
        with self._rung:
            self._rung.notify()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
            self._thread.start()
        self._rung.notify()

    def _run(self) -> None:
        while True:
            with self._rung:
                self._rung.wait_for(lambda: self._orders or self._news or self._stopped.is_set())
                orders, news = self._orders, self._news
                self._orders, self._news = False, set()
            if not orders and not news:
                return
            self._stopped.wait(self._every if self._send(orders, news) else self._patience)

    def _send(self, orders: bool, news: Iterable[tuple[str, str]]) -> bool:
        """False when the broker or the ledger did not take it: the workers will find it by themselves."""
        try:
            if orders:
                self._fill()
            for system, account in sorted(news):
                self._tell_news(system, account)
        except (BrokerAway, SQLAlchemyError) as error:
            log.warning("not rung, the sweep will see to it", action="ring_failed", error=str(error)[:300])
            return False
        return True


def build_bell(settings: Settings, ledger: Ledger) -> Bell:
    """The bell of a process that sends to `settings.broker_url`; without one, nothing is sent from here."""
    if settings.broker_url is None:
        return Bell(lambda: None, lambda system, account: None)
    app = build_app(settings.broker_url, settings.systems)

    def if_anybody_hears(send: Callable[..., None], *words: str) -> None:
        # A worker that starts looks by itself; until then, messages would only pile up in the broker.
        if queries.count_live_workers(ledger):
            send(app, *words)

    return Bell(lambda: if_anybody_hears(send_fill), lambda *words: if_anybody_hears(send_news, *words))
