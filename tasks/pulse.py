"""A worker's sign of life, which is its lease on everything it holds."""

import threading
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError

from ledger import leases, upkeep
from ledger.connection import Ledger
from orders.errors import Fenced

EVERY = 1.5

log = structlog.get_logger(__name__)


class Pulse:
    """Writes this worker's sign of life, and knows whether its lease still holds.

    The lease is measured on the monotonic clock from before the write: it ends here no later than in the database."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self.worker = worker
        self._last = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Beat once now (raises if the ledger is away), then keep beating in the background."""
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """One sign of life."""
        began = time.monotonic()
        upkeep.beat(self._ledger, self.worker)
        self._last = began

    def stop(self) -> None:
        """No more signs of life; what is held can be taken over at once."""
        self._stop.set()
        self._thread.join(timeout=5)
        upkeep.sign_off(self._ledger, self.worker)

    def check(self) -> None:
        """Raises `Fenced` when others may already have taken over what this worker holds."""
        if time.monotonic() - self._last > leases.WORKER_LEASE - 1.0:
            raise Fenced(f"no sign of life from {self.worker} reached the ledger for {leases.WORKER_LEASE - 1:.0f} s")

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.beat()
            except SQLAlchemyError as error:
                log.warning("the ledger does not answer", action="pulse_failed", error=str(error.__cause__ or error))
