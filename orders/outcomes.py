"""What a step that did not fail says: how it ended and what follows."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Planned:
    """One step of a plan. `awaits` is the signal without which it may not run, or several of which one will do:
    `completed|shipped`. While waiting, the step before it runs again every `recheck` seconds, if set. `data` is the
    step's own, kept as JSON."""

    name: str
    awaits: str | None = None
    recheck: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is there. What else was learnt goes into the ledger with it, in one commit.

    `detail`: a sentence for the timeline. `facts`: merged into what is known of the order. `signals`: facts that
    later steps wait for. `rest`: replaces the steps after this one. `raw` and `document`: the remote document and
    the canonical order (JSON), if this step read them. `reference`: the order's reference, when learnt."""

    detail: str = ""
    facts: dict[str, Any] | None = None
    signals: tuple[str, ...] = ()
    rest: tuple[Planned, ...] | None = None
    raw: str | None = None
    document: dict[str, Any] | None = None
    reference: str | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """This step has done a part and goes on: at once (`more`), when `awaits` is signalled once more, or by itself
    after so many seconds (`after`), whichever comes first."""

    awaits: str
    detail: str = ""
    facts: dict[str, Any] | None = None
    more: bool = False
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The remote order needs nothing more of its plan. `cancelled`: what was done is taken back, by `rest` and then by
    cancelling in the ERP."""

    reason: str
    cancelled: bool = False
    raw: str | None = None
    reference: str | None = None
    rest: tuple[Planned, ...] = ()


Outcome = Done | Again | Ended


def alternatives(awaits: str) -> list[str]:
    """The signals of which one is enough, at most two: `completed|shipped`."""
    return awaits.split("|")


def skipped(reason: str, **more: Any) -> Done:
    """The effect was there already, or there is nothing to do: recorded as skipped, with the reason."""
    return Done(detail=reason, skipped=True, **more)
