"""Threads with requests and no record at all: what is in hand when the process dies is lost, or done again.

`python -m bench.comparators.threads worker`, in the harness's environment; it is its own producer.
"""

import queue
import threading

from bench.place import Place, produce_on_demand, say, this_place
from bench.store import Store
from bench.work import Caller, erp_row


class Crew:
    """So many threads that take orders from one queue, with one session and one pool of connections."""

    def __init__(self, place: Place) -> None:
        self._steps = place.steps
        self._store = Store(place.database, threads=place.threads)
        self._caller = Caller(place.remote, threads=place.threads)
        self._orders: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done = 0
        self._lock = threading.Lock()
        for _ in range(place.threads):
            threading.Thread(target=self._work, daemon=True).start()

    def take(self, orders: range) -> None:
        """Queue these orders."""
        for order in orders:
            self._orders.put(order)

    def _work(self) -> None:
        while True:
            self._process(self._orders.get())
            with self._lock:
                self._done += 1
                say(f"done {self._done}")

    def _process(self, order: int) -> None:
        for step in self._steps:
            if step.in_erp:
                self._store.put_order(erp_row(order))
            else:
                self._caller.make(step, order)


def main() -> None:
    """The command line."""
    produce_on_demand(Crew(this_place()).take)


if __name__ == "__main__":
    main()
