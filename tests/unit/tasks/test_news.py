"""Known orders are read again when there is news of them, once, and whatever goes wrong is seen or tried again."""

import pytest
from sqlalchemy import select

from ledger import intake, queries, signals
from ledger.models import events
from ledger.queries import Known
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.errors import Refused, TryLater, Unavailable
from orders.outcomes import Again, Done, Planned
from orders.states import State
from tasks.base import Account, Fleet, System, Visit
from tasks.news import read_news
from tasks.ticks import Ticks
from tests.unit.tasks.conftest import Acme

PLAN = (Planned("acme.wait", awaits="done"),)


def news_of(acme: Acme, external_id: str, number: int = 1, account: str = "north") -> intake.TakenIn:
    arrival = Arrival(account, external_id, f"hook:{external_id}:{number}", "hook", "{}", PLAN, news=True)
    return intake.take_in(acme.ledger, "acme", [arrival])


def visit(acme: Acme, account: str = "north") -> Visit:
    return Visit(acme.ledger, acme.fleet.accounts["acme", account])


def problems(acme: Acme) -> list[str]:
    with acme.ledger.reading() as connection:
        return list(connection.execute(select(events.c.problem).where(events.c.problem.is_not(None))).scalars())


class Reviewer:
    """A review that remembers what it was asked, and answers what the test says."""

    def __init__(self, answer: str | Exception | None = None) -> None:
        self.asked: list[Known] = []
        self.answer = answer

    def __call__(self, visit: Visit, known: Known) -> str | None:
        self.asked.append(known)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_first_event_of_an_order_is_no_news(acme_on_both):
    taken = news_of(acme_on_both, "7")
    assert len(taken.new) == 1
    assert taken.news == frozenset()
    review = Reviewer()
    assert read_news(visit(acme_on_both), review) == 0
    assert review.asked == []


def test_a_later_event_has_the_order_read_once(acme_on_both):
    news_of(acme_on_both, "7")
    assert news_of(acme_on_both, "7", 2).news == {"north"}
    assert news_of(acme_on_both, "7", 3).news == {"north"}
    assert news_of(acme_on_both, "7", 3).news == frozenset()  # a double
    review = Reviewer()
    assert read_news(visit(acme_on_both), review) == 1
    assert read_news(visit(acme_on_both), review) == 0
    (known,) = review.asked
    assert (known.external_id, known.state, known.awaits, known.finished) == ("7", State.WAITING, "done", False)


def test_an_event_of_an_unknown_order_without_a_plan_is_kept_and_nobodys_news(acme):
    taken = intake.take_in(acme.ledger, "acme", [Arrival("north", None, "ping:1", "ping", "{}", (), news=True)])
    assert (taken.events, taken.new, taken.news) == (1, (), frozenset())
    assert read_news(visit(acme), Reviewer()) == 0


def test_another_account_s_news_is_left_alone(acme):
    for account in ("north", "south"):
        news_of(acme, "7", account=account)
        news_of(acme, "7", 2, account=account)
    review = Reviewer()
    assert read_news(visit(acme, "south"), review) == 1
    assert [known.account for known in review.asked] == ["south"]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("cancelled there, done here", "cancelled there, done here"),
        (Refused("its status 77 is not known"), "its status 77 is not known"),
        (ValueError("our bug"), "a fault in orderfleet: ValueError: our bug"),
    ],
)
def test_what_a_person_should_see_is_kept_with_the_event(acme, answer, shown):
    news_of(acme, "7")
    news_of(acme, "7", 2)
    read_news(visit(acme), Reviewer(answer))
    assert problems(acme) == [shown]
    assert read_news(visit(acme), Reviewer()) == 0


def test_an_order_that_cannot_be_read_now_is_tried_again_and_holds_up_no_other(acme):
    for name in ("7", "8"):
        news_of(acme, name)
        news_of(acme, name, 2)
    assert read_news(visit(acme), Reviewer(TryLater("504"))) == 2
    assert problems(acme) == []
    assert read_news(visit(acme), Reviewer()) == 0  # not yet
    with acme.ledger.reading() as connection:
        assert len(list(connection.execute(select(events.c.id).where(events.c.news_at.is_not(None))))) == 2


def ticks(acme: Acme, review: Reviewer) -> Ticks:
    fleet = Fleet(
        acme.ledger,
        acme.fleet.erp,
        {("acme", "north"): Account("acme", "north", None)},
        {"acme": System("acme", review=review)},
        lanes=acme.fleet.lanes,
    )
    worker = acme.worker()
    return Ticks(fleet, worker.dispatcher, worker.gates, "w1")


def test_a_remote_that_is_away_closes_its_gate_and_the_news_stays(acme):
    news_of(acme, "7")
    news_of(acme, "7", 2)
    away = Reviewer(Unavailable("nobody there", after=0.1))
    tick = ticks(acme, away)
    assert tick.news("acme", "north") == "not done: nobody there"
    assert tick.news("acme", "north") == "not done: nobody there"
    assert len(away.asked) == 1  # the gate is closed: it is not asked again
    acme.time_passes()
    with acme.ledger.reading() as connection:
        assert len(list(connection.execute(select(events.c.id).where(events.c.news_at.is_not(None))))) == 1


def test_news_nobody_was_told_of_is_told_again_but_not_every_second(acme):
    news_of(acme, "7")
    news_of(acme, "7", 2)
    worker = acme.worker()
    worker.sweep.run()
    assert worker.told_news == []
    acme.news_gets_old()
    acme.ticks_are_due()
    worker.sweep.run()
    assert worker.told_news == [("acme", "north")]
    acme.ticks_are_due()
    worker.sweep.run()
    assert worker.told_news == [("acme", "north")]


# === what the plans of such systems need ====================================================================


def test_either_of_two_signals_is_enough(acme_on_both):
    acme = acme_on_both
    acme.step("acme.first", lambda job, account: Done())
    acme.step("acme.end", lambda job, account: Done())
    plan = (Planned("acme.first"), Planned("acme.end", awaits="completed|shipped"))
    early, late, other = acme.take_in("early", "late", "other", plan=plan)
    signals.signal(acme.ledger, [Signal(early, "shipped", "erp:1")])
    worker = acme.worker()
    worker.work()
    assert {name: acme.state(name) for name in ("early", "late", "other")} == {
        "early": State.DONE,
        "late": State.WAITING,
        "other": State.WAITING,
    }
    assert signals.signal(acme.ledger, [Signal(late, "completed", "erp:2")]) == [late]
    assert signals.signal(acme.ledger, [Signal(other, "numbered", "erp:3")]) == []
    worker.work()
    assert (acme.state("late"), acme.state("other")) == (State.DONE, State.WAITING)


def test_a_part_is_not_the_whole_and_the_other_signal_still_counts(acme):
    ends = iter([Again("completed|shipped", "one box of two"), Done()])
    acme.step("acme.end", lambda job, account: next(ends))
    (order,) = acme.take_in("7", plan=(Planned("acme.end", awaits="completed|shipped"),))
    worker = acme.worker()
    signals.signal(acme.ledger, [Signal(order, "shipped", "erp:1")])
    worker.work()
    assert acme.state("7") == State.WAITING
    signals.signal(acme.ledger, [Signal(order, "completed", "erp:2")])
    worker.work()
    assert acme.state("7") == State.DONE


def test_a_step_goes_on_by_itself_after_a_time(acme_on_both):
    acme = acme_on_both
    asked = []

    def track(job, account):
        asked.append(job.look)
        return Done() if len(asked) == 3 else Again("done", "not yet", after=60.0)

    acme.step("acme.before", lambda job, account: Done())
    acme.step("acme.track", track)
    acme.take_in("7", plan=(Planned("acme.before"), Planned("acme.track")))
    worker = acme.worker()
    worker.work()
    assert acme.state("7") == State.WAITING
    for _ in range(2):
        worker.sweep.run()
        worker.work()
    assert len(asked) == 1  # its time has not come
    for _ in range(2):
        acme.time_passes()
        worker.sweep.run()
        worker.work()
    assert acme.state("7") == State.DONE
    assert [step for step, _ in acme.attempts("7")].count("acme.before") == 1


def test_a_step_that_waited_for_a_signal_goes_on_by_itself_too(acme_on_both):
    acme = acme_on_both
    ends = iter([Again("shipped", "half of it", after=60.0), Done()])
    acme.step("acme.end", lambda job, account: next(ends))
    (order,) = acme.take_in("7", plan=(Planned("acme.end", awaits="completed|shipped"),))
    signals.signal(acme.ledger, [Signal(order, "shipped", "erp:1")])
    worker = acme.worker()
    worker.work()
    assert acme.state("7") == State.WAITING
    acme.time_passes()
    worker.sweep.run()
    worker.work()
    assert acme.state("7") == State.DONE


def test_a_signal_comes_sooner_than_the_time(acme):
    ends = iter([Again("done", after=3600.0), Done()])
    acme.step("acme.track", lambda job, account: next(ends))
    (order,) = acme.take_in("7", plan=(Planned("acme.track"),))
    worker = acme.worker()
    worker.work()
    signals.signal(acme.ledger, [Signal(order, "done", "operator:1")])
    worker.work()
    assert acme.state("7") == State.DONE


def test_unfinished_orders_are_listed_the_longest_untouched_first(acme):
    acme.step("acme.end", lambda job, account: Done())
    acme.take_in("done", plan=(Planned("acme.end"),))
    acme.worker().work()
    acme.take_in("1", "2", plan=PLAN)
    acme.take_in("3", account="south", plan=PLAN)
    assert [known.external_id for known in queries.unfinished(acme.ledger, "acme", "north")] == ["1", "2"]
    assert len(queries.unfinished(acme.ledger, "acme", "north", limit=1)) == 1
