"""Read known orders again of which there is news: a webhook, or a changed row of a poll."""

import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import DBAPIError

from ledger import intake, queries
from ledger.queries import Known
from orders.errors import InDoubt, Refused, StepError, TryLater
from tasks.base import Visit

BATCH = 50
AGAIN_AFTER = 10.0
"""Seconds after which an order that could not be read is tried again."""
LONGEST = 30.0
"""Seconds after which other work gets its turn; what is left is told of again."""

log = structlog.get_logger(__name__)


Review = Callable[[Visit, Known], str | None]
"""See `tasks.base.System`."""


def read_news(visit: Visit, review: Review) -> int:
    """Review every order of the account that has unread news; how many were. Raises `Unavailable` when the remote
    answers nobody: what is left stays unread."""
    system, account = visit.account.system, visit.account.name
    until, reviewed = time.monotonic() + LONGEST, 0
    while time.monotonic() < until:
        news = queries.unread_news(visit.ledger, system, account, BATCH)
        if not news:
            break
        for order in queries.known_orders(visit.ledger, system, account, list(news)):
            _read(visit, review, order, news.pop(order.external_id))
            reviewed += 1
        for of_nobody in news.values():
            intake.settle_news(visit.ledger, of_nobody)
    return reviewed


def _read(visit: Visit, review: Review, order: Known, event_ids: list[int]) -> None:
    try:
        problem = _asked(visit, review, order)
    except TryLater as error:
        intake.put_off_news(visit.ledger, event_ids, AGAIN_AFTER)
        log.info("an order could not be read", action="news_put_off", order=order.id, reason=error.reason)
        return
    intake.settle_news(visit.ledger, event_ids, problem)
    if problem is not None:
        log.warning("news that a person should see", action="odd_event", order=order.id, problem=problem)


def _asked(visit: Visit, review: Review, order: Known) -> str | None:
    try:
        return review(visit, order)
    except (Refused, InDoubt) as refusal:
        return refusal.reason
    except (StepError, DBAPIError):
        raise
    except Exception as error:  # our bug, whatever it is: shown, and the others go on
        log.error("a review failed by our own fault", action="bug", order=order.id, exc_info=error)
        return f"a fault in orderfleet: {type(error).__name__}: {error}"
