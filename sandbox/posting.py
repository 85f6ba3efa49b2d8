"""How the imitations deliver webhooks: at least once, from a thread of their own, and badly on request.

A delivery is tried until the receiver answers well or the schedule of its system is used up; then it is lost for good,
as it is in real life. What a network does besides is a matter of knobs: `PostOptions`.
"""

import heapq
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import requests

from sandbox import base


@dataclass(kw_only=True)
class PostOptions(base.Options):
    """The knobs of a system that sends webhooks."""

    webhook_lost: float = 0.0
    """The share of deliveries that never leave, for good: what a reconciling poll is for."""
    webhook_doubled: float = 0.0
    """The share that is sent twice though the first was answered."""
    webhook_late_seconds: float = 0.0
    """Each delivery waits up to so long: later ones overtake it."""
    time_factor: float = 1.0
    """Seconds of this clock for one of the vendor's: 0.001 makes a minute's wait 60 ms."""
    webhook_seed: int = 0


@dataclass(slots=True)
class Delivery:
    """One webhook and what became of it. `statuses`: what every try was answered with (None: no answer)."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    order: str = ""
    statuses: list[int | None] = field(default_factory=list)
    lost: bool = False
    """It never left, or the last try was in vain."""

    def as_json(self) -> dict[str, Any]:
        """For control endpoints: the body as text."""
        body = self.body.decode(errors="replace")
        return {"url": self.url, "order": self.order, "body": body, "statuses": self.statuses, "lost": self.lost}


class Post:
    """Delivers webhooks. Thread-safe; the thread starts with the first delivery and never keeps a process alive.

    `waits`: the vendor's seconds before the second try, the third and so on. `good`: which statuses count as
    delivered. `timeout`: the vendor's patience, in real seconds. Redirects are not followed and are no success."""

    def __init__(
        self,
        options: PostOptions,
        *,
        waits: Sequence[float],
        good: Callable[[int], bool] = lambda status: 200 <= status < 300,
        timeout: float = 10.0,
    ) -> None:
        self._options = options
        self._waits = tuple(waits)
        self._good = good
        self._timeout = timeout
        self._dice = random.Random(options.webhook_seed)
        self._wake = threading.Condition()
        self._queue: list[tuple[float, int, Delivery]] = []
        self._numbers = count()
        self._all: list[Delivery] = []
        self._under_way = 0
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def send(self, url: str, body: bytes, headers: Mapping[str, str], order: object = "") -> None:
        """Deliver `body`, exactly these bytes, soon. Returns at once."""
        delivery = Delivery(url, body, dict(headers), str(order))
        with self._wake:
            self._all.append(delivery)
            if self._dice.random() < self._options.webhook_lost:
                delivery.lost = True
                return
            for _ in range(2 if self._dice.random() < self._options.webhook_doubled else 1):
                self._put(delivery, self._dice.random() * self._options.webhook_late_seconds)

    def deliveries(self, order: object | None = None) -> list[Delivery]:
        """All of them, or those about one order, in the order in which they were sent."""
        with self._wake:
            return [one for one in self._all if order is None or one.order == str(order)]

    def quiet(self) -> bool:
        """Whether nothing is waiting or under way."""
        with self._wake:
            return not self._queue and self._under_way == 0

    def stop(self) -> None:
        """Deliver nothing any more."""
        with self._wake:
            self._stopped = True
            self._queue.clear()
            self._wake.notify_all()

    def _put(self, delivery: Delivery, seconds: float) -> None:
        heapq.heappush(self._queue, (time.monotonic() + seconds, next(self._numbers), delivery))
        if len(self._threads) < 4 and not self._stopped:  # several: one slow receiver must not hold up the rest
            thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._wake.notify()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while (delivery := self._next()) is not None:
                status = self._try(session, delivery)
                with self._wake:
                    self._under_way -= 1
                    self._tried(delivery, status)

    def _next(self) -> Delivery | None:
        with self._wake:
            while not self._stopped:
                pause = self._queue[0][0] - time.monotonic() if self._queue else None
                if pause is not None and pause <= 0:
                    self._under_way += 1
                    return heapq.heappop(self._queue)[2]
                self._wake.wait(pause)
            return None

    def _try(self, session: requests.Session, delivery: Delivery) -> int | None:
        try:
            answer = session.post(
                delivery.url,
                delivery.body,
                headers=dict(delivery.headers),
                timeout=self._timeout,
                allow_redirects=False,
            )
        except (requests.RequestException, OSError):
            return None
        return answer.status_code

    def _tried(self, delivery: Delivery, status: int | None) -> None:
        delivery.statuses.append(status)
        if status is not None and self._good(status):
            return
        tries = len(delivery.statuses)
        if tries > len(self._waits):
            delivery.lost = True
        elif not self._stopped:
            self._put(delivery, self._waits[tries - 1] * self._options.time_factor)
