"""What comes in: one accepted webhook delivery, or one row of a poll."""

from dataclasses import dataclass

from orders.outcomes import Planned


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is kept of an event, and the plan should its order be new.

    `external_id`: the order it is about, None if it is about none. `dedupe_key` (at most 190 characters) names the
    event within its account, once for ever. `kind`: at most 64 characters. `plan`: empty for an event that makes no
    order. `due`: the remote says that the order is still to be done. One that was ignored here is then taken up after
    all, and one that ended otherwise is shown to a person: somebody has set it back. `news`: an order that is known
    already is to be read again because of it (`tasks.base.System.review`)."""

    account: str
    external_id: str | None
    dedupe_key: str
    kind: str
    body: str
    plan: tuple[Planned, ...]
    reference: str | None = None
    due: bool = False
    news: bool = False
