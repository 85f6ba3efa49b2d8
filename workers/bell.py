"""Rings for the workers after a commit: what has just come in is sent soon, and nobody waits for the broker.

Whatever is not sent, the sweep sends: the ledger knows it all. So this may forget, but it may never block."""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from ledger import queries
from ledger.connection import Ledger
from tasks.bulkhead import Bulkhead
from tasks.dispatch import BrokerAway, Dispatcher
from tasks.gates import Gates
from workers.bootstrap import lanes_of
from workers.celery import build_app, send_chain, send_news
from workers.settings import Settings
from workers.worker import WINDOW_PER_THREAD

MOST_WAITING = 10_000
"""Rings that may wait to be sent; more are left to the sweep."""
MOST_AT_ONCE = 500
PATIENCE = 5.0
"""Seconds for which nothing is sent after the broker was found to be away."""

log = structlog.get_logger(__name__)


class Bell:
    """One process's bell. Its thread starts with the first ring, never before a fork."""

    def __init__(
        self,
        send_orders: Callable[[str, Sequence[int]], object],
        send_news: Callable[[str, str], object],
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        self._send_orders = send_orders
        self._send_news = send_news
        self._waiting: queue.SimpleQueue[tuple[str, int | str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stopped = threading.Event()

    def ring(self, system: str, order_ids: Sequence[int]) -> None:
        """These orders are ready to be sent. Returns at once."""
        self._put((system, order_id) for order_id in order_ids)

    def news(self, system: str, accounts: Iterable[str]) -> None:
        """There is news of known orders of these accounts. Returns at once."""
        self._put((system, account) for account in accounts)

    def stop(self) -> None:
        """Send what was rung for, and end the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout=5)

    def _put(self, rings: Iterable[tuple[str, int | str]]) -> None:
        if self._waiting.qsize() > MOST_WAITING:
            return
        for one in rings:
            self._waiting.put(one)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MOST_AT_ONCE and not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    self._send(batch)
                    return
                batch.append(more)
            if not self._send(batch):
                self._stopped.wait(self._patience)

    def _send(self, batch: Sequence[tuple[str, int | str]]) -> bool:
        """False when the broker or the ledger did not take it: the sweep will see to it."""
        try:
            for system in dict.fromkeys(system for system, _ in batch):
                about = [what for of, what in batch if of == system]
                ids = list(dict.fromkeys(what for what in about if isinstance(what, int)))
                if ids:
                    self._send_orders(system, ids)
                for account in dict.fromkeys(what for what in about if isinstance(what, str)):
                    self._send_news(system, account)
        except (BrokerAway, SQLAlchemyError) as error:
            log.warning("not sent now, the sweep will send it", action="ring_failed", error=str(error)[:300])
            return False
        return True


def build_bell(settings: Settings, ledger: Ledger) -> Bell:
    """The bell of a process that sends to `settings.broker_url`; without one, nothing is sent from here."""
    if settings.broker_url is None:
        return Bell(lambda system, ids: None, lambda system, account: None)
    app = build_app(settings.broker_url, settings.systems)
    gates = Gates(ledger, Bulkhead(settings.concurrency))
    window = settings.concurrency * WINDOW_PER_THREAD
    dispatcher = Dispatcher(ledger, gates, lanes_of(settings), lambda system, run: send_chain(app, system, run), window)

    def send_orders(system: str, ids: Sequence[int]) -> int:
        gates.refresh()
        dispatcher.scale(queries.count_live_workers(ledger))
        return dispatcher.send_now(system, ids)

    return Bell(send_orders, lambda system, account: send_news(app, system, account))
