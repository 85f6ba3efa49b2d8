"""Orders that are put in at our own door, on both databases: each becomes one order, however often and however many
at once it comes."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, func, literal, select, update

from databases.clock import later
from ledger import inbound, queries, signals
from ledger.connection import Ledger
from ledger.inbound import Door
from ledger.models import inbound_images, inbound_requests, inbound_tokens, orders
from orders.inbound import Accepted, ImageReused, KeyReused, Made, Offer, UnderWay
from orders.outcomes import Planned
from orders.states import State

PLAN = (Planned("erp.order"), Planned("acme.book"))
DAY = 86400.0


@pytest.fixture
def door(ledger: Ledger) -> Door:
    return Door(ledger, "acme")


def make(number: int, at: datetime) -> Made:
    assert at.tzinfo is not None
    return Made(f"Store One #{number}", {"reference": f"Store One #{number}"}, {"_id": number, "words": "wörds"})


def offer(images: tuple[str, ...], **more: Any) -> Offer:
    values: dict[str, Any] = {
        "account": "default",
        "sender": "ann",
        "key": None,
        "body": '{"customer": "\\u0000"}',
        "images": images,
        "same": "s" * 64,
        "content": "c" * 64,
        "likeness": "l" * 64,
        "place": "st-1",
        "search": "ann test\n35799000001\nsecond_floor 100%",
        "make": make,
        "facts": {"partner": "ann"},
    }
    return Offer(**(values | more))


def uploaded(door: Door, count: int = 1, sender: str = "ann") -> tuple[str, ...]:
    return tuple(door.add_image(sender, "image/png", b"\x89PNG%d" % number) for number in range(count))


def fresh(door: Door, **more: Any) -> Accepted:
    """A new order with an image of its own."""
    images = uploaded(door, sender=more.get("sender", "ann"))
    return door.accept(offer(images, **({"same": images[0], "likeness": images[0]} | more)), PLAN)


def count(ledger: Ledger, table: Any) -> int:
    with ledger.reading() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def age(ledger: Ledger, table: Any, days: float) -> None:
    with ledger.statement() as connection:
        connection.execute(update(table).values(created_at=later(literal(-days * DAY))))


# -- accepting --------------------------------------------------------------------------------------------------------


def test_one_commit_has_all_of_an_order(ledger: Ledger, door: Door):
    images = uploaded(door, 2)
    accepted = door.accept(offer(images), PLAN)
    assert accepted == Accepted(0, accepted.order_id, {"_id": 0, "words": "wörds"}, new=True)
    (row,) = queries.find_order(ledger, "acme:0")
    assert row["id"] == accepted.order_id
    assert (row["state"], row["step"], row["reference"]) == (State.READY, "erp.order", "Store One #0")
    assert row["facts"] == {"partner": "ann"}
    assert queries.document(ledger, accepted.order_id) == {"reference": "Store One #0"}
    assert [step["name"] for step in queries.plan_of(ledger, accepted.order_id)] == ["erp.order", "acme.book"]
    assert [entry["what"] for entry in queries.timeline(ledger, accepted.order_id)] == ["order"]
    assert [image.id for image in inbound.images_of(ledger, accepted.order_id)] == list(images)
    assert inbound.request_of(ledger, accepted.order_id) == '{"customer": "\\u0000"}'


def test_an_order_that_came_otherwise_has_no_request(ledger: Ledger, order: int):
    assert inbound.request_of(ledger, order) is None
    assert inbound.images_of(ledger, order) == []


def test_trap_01_numbers_count_from_0_without_gaps(ledger: Ledger, door: Door):
    numbers = [fresh(door).number for _ in range(3)]
    with pytest.raises(ZeroDivisionError):
        fresh(door, make=lambda number, at: 1 / 0)
    assert [*numbers, fresh(door).number] == [0, 1, 2, 3]
    assert count(ledger, orders) == count(ledger, inbound_requests) == 4
    assert fresh(Door(ledger, "other")).number == 0


def test_nothing_is_left_of_what_fails(ledger: Ledger, door: Door):
    images = uploaded(door)
    with pytest.raises(ImageReused):
        door.accept(offer((*images, "0" * 24)), PLAN)
    assert count(ledger, orders) == count(ledger, inbound_requests) == 0
    assert door.accept(offer(images), PLAN).number == 0


# -- the same again ---------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_get_the_first_answer(ledger: Ledger, door: Door):
    first = fresh(door, key="k-1", same="s1")
    for ask in (door.known, lambda again: door.accept(again, PLAN)):
        again = ask(offer(uploaded(door), key="k-1", same="s1"))
        assert again == Accepted(0, first.order_id, first.answer, new=False)
    assert count(ledger, orders) == 1


def test_the_same_key_with_another_body_is_refused(ledger: Ledger, door: Door):
    fresh(door, key="k-1", same="s1")
    for ask in (door.known, lambda again: door.accept(again, PLAN)):
        with pytest.raises(KeyReused):
            ask(offer(uploaded(door), key="k-1", same="s2"))
    assert fresh(door, key="k-1", same="s1", sender="bob").number == 1


def test_trap_11_a_blind_retry_is_the_same_order(ledger: Ledger, door: Door):
    images = uploaded(door, 2)
    first = door.accept(offer(images), PLAN)
    for again in (offer(images), offer(images[::-1], same="t" * 64), offer(images, key="late")):
        assert door.known(again) == door.accept(again, PLAN) == Accepted(0, first.order_id, first.answer, new=False)
    assert count(ledger, orders) == 1


def test_trap_13_an_image_belongs_to_one_order(ledger: Ledger, door: Door):
    images = uploaded(door, 3)
    door.accept(offer(images[:2]), PLAN)
    fresh(door)
    others = (images[:2], "d" * 64), (images[:1], "c" * 64), (images, "c" * 64), (images[1:], "c" * 64)
    for named, content in others:
        for ask in (door.known, lambda again: door.accept(again, PLAN)):
            with pytest.raises(ImageReused):
                ask(offer(named, content=content))
    assert count(ledger, orders) == 2
    with ledger.reading() as connection:
        free = select(inbound_images.c.id).where(inbound_images.c.number.is_(None))
        assert connection.execute(free).scalars().all() == [images[2]]


def test_images_of_two_orders_are_none_of_either(ledger: Ledger, door: Door):
    images = uploaded(door, 2)
    door.accept(offer(images[:1]), PLAN)
    door.accept(offer(images[1:], likeness="x"), PLAN)
    with pytest.raises(ImageReused):
        door.known(offer(images))


def test_images_of_another_sender_are_not_there(ledger: Ledger, door: Door):
    images = uploaded(door, 2, "bob")
    assert door.known_images("ann", images) == set()
    assert door.known_images("bob", (*images, "url")) == set(images)
    assert door.image("ann", images[0]) is None
    found = door.image("bob", images[1])
    assert found is not None
    assert (found.id, found.mimetype, found.content) == (images[1], "image/png", b"\x89PNG1")
    with pytest.raises(ImageReused):
        door.accept(offer(images), PLAN)


def test_answers_are_repeated_for_30_days(ledger: Ledger, door: Door):
    images = uploaded(door)
    door.accept(offer(images, key="k-1"), PLAN)
    age(ledger, inbound_requests, 29.9)
    assert door.accepted_before("ann", "k-1", "s" * 64) is not None
    assert door.known(offer(images, key="k-1")) is not None
    age(ledger, inbound_requests, 30.1)
    assert door.accepted_before("ann", "k-1", "s" * 64) is None
    assert fresh(door, key="k-1", same="s2").number == 1
    with pytest.raises(ImageReused):
        door.known(offer(images))


def test_the_very_same_request_is_found_by_its_body(ledger: Ledger, door: Door):
    first = fresh(door, same="a")
    fresh(door, same="b", key="k-1")
    assert door.accepted_before("ann", None, "a") == Accepted(0, first.order_id, first.answer, new=False)
    assert door.accepted_before("ann", None, "b") is None
    assert door.accepted_before("ann", "k-1", "a") is None
    assert door.accepted_before("bob", None, "a") is None
    found = door.accepted_before("ann", "k-1", "b")
    assert found is not None
    assert found.number == 1


def test_a_possible_double_is_flagged(ledger: Ledger, door: Door):
    def flags(accepted: Accepted) -> list[str]:
        (row,) = queries.find_order(ledger, str(accepted.order_id))
        found: list[str] = row["facts"].get("flags", [])
        return found

    assert flags(fresh(door, likeness="x")) == []
    assert flags(fresh(door, likeness="y")) == []
    assert flags(fresh(door, likeness="x", key="k-1")) == []
    (said,) = flags(fresh(door, likeness="x"))
    assert "a double of 0, 2" in said
    age(ledger, inbound_requests, 601 / DAY)
    assert flags(fresh(door, likeness="x")) == []


# -- many at once -----------------------------------------------------------------------------------------------------


def at_once(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returns or raises, all begun together."""
    together = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        together.wait()
        try:
            return task()
        except (KeyReused, ImageReused, UnderWay) as error:
            return type(error)

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def test_trap_11_concurrent_doubles_are_one_order(ledger: Ledger, ledger_url: str):
    ledgers = [Ledger(ledger_url) for _ in range(2)]  # two processes, as far as the database can tell
    doors = [Door(one, "acme") for one in ledgers]
    sets = [uploaded(doors[0], 2) for _ in range(4)]
    found = at_once([partial(doors[number % 2].accept, offer(sets[number % 4]), PLAN) for number in range(16)])
    assert sorted({accepted.number for accepted in found}) == [0, 1, 2, 3]
    assert sum(accepted.new for accepted in found) == 4
    for number, images in enumerate(sets):
        (same,) = {accepted.number for accepted in found[number::4]}
        assert door_images(ledger, same) == set(images)
    assert count(ledger, orders) == 4
    for one in ledgers:
        one.close()


def door_images(ledger: Ledger, number: int) -> set[str]:
    with ledger.reading() as connection:
        wanted = select(inbound_images.c.id).where(inbound_images.c.number == number)
        return set(connection.execute(wanted).scalars())


def test_one_image_in_two_different_orders_at_once(ledger: Ledger, door: Door):
    images = uploaded(door, 9)
    pairs = [(images[0], other) for other in images[1:]]
    found = at_once([partial(door.accept, offer(pair, content=pair[1]), PLAN) for pair in pairs])
    assert found.count(ImageReused) == 7
    assert count(ledger, orders) == 1


def test_one_key_many_times_at_once_is_one_order(ledger: Ledger, ledger_url: str):
    ledgers = [Ledger(ledger_url) for _ in range(2)]
    doors = [Door(one, "acme") for one in ledgers]
    images = uploaded(doors[0])
    found = at_once([partial(doors[number % 2].accept, offer(images, key="k"), PLAN) for number in range(12)])
    numbers = {accepted.number for accepted in found if accepted is not UnderWay}
    assert numbers == {0}
    assert doors[0].accept(offer(images, key="k"), PLAN).number == 0
    assert count(ledger, orders) == 1
    for one in ledgers:
        one.close()


@contextmanager
def held_up(ledger: Ledger) -> Iterator[None]:
    """Nothing is accepted meanwhile."""
    with ledger.engine.connect() as connection:
        if ledger.postgresql:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("LOCK TABLE counters IN ACCESS EXCLUSIVE MODE")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.exec_driver_sql("ROLLBACK")


def test_the_same_key_while_the_first_is_running(ledger: Ledger, door: Door):
    _one_is_refused_at_once(ledger, door, door)


def test_the_same_key_while_the_first_is_running_elsewhere(ledger: Ledger, ledger_url: str, door: Door):
    if not ledger.postgresql:
        return  # SQLite has one writer: the second waits for the first, and is answered like a retry
    other = Ledger(ledger_url)
    _one_is_refused_at_once(ledger, door, Door(other, "acme"))
    other.close()


def _one_is_refused_at_once(ledger: Ledger, one: Door, other: Door) -> None:
    images = uploaded(one)
    again = offer(images, key="k")
    with ThreadPoolExecutor(2) as pool:
        with held_up(ledger):
            running = [pool.submit(door.accept, again, PLAN) for door in (one, other)]
            ended, still = wait(running, timeout=20, return_when=FIRST_COMPLETED)
        assert [type(each.exception()) for each in ended] == [UnderWay]
        (accepted,) = (each.result(timeout=20) for each in still)
    assert accepted.new
    assert other.accept(again, PLAN) == Accepted(0, accepted.order_id, accepted.answer, new=False)


# -- what a sender may see --------------------------------------------------------------------------------------------


def test_the_newest_come_first_and_nobody_elses(ledger: Ledger, door: Door):
    for _ in range(5):
        fresh(door)
    fresh(door, sender="bob")
    assert [one.number for one in door.orders("ann")] == [4, 3, 2, 1, 0]
    assert [one.number for one in door.orders("ann", skip=3)] == [1, 0]
    assert [one.number for one in door.orders("ann", skip=9)] == []
    assert [one.number for one in door.orders("bob")] == [5]


def test_long_lists_are_read_in_pages(ledger: Ledger, door: Door):
    for _ in range(7):
        fresh(door)
    for page in (3, 7):
        paging = Door(ledger, "acme", page=page)
        assert [one.number for one in paging.orders("ann")] == [6, 5, 4, 3, 2, 1, 0]
        assert [one.number for one in paging.orders("ann", "ann", ["st-1"], skip=2)] == [4, 3, 2, 1, 0]


def test_what_an_order_is_found_by(ledger: Ledger, door: Door):
    fresh(door)
    fresh(door, search="ännie test\n35799000002\n")
    found = {
        "store one": [1, 0],
        "STORE ONE #1": [1],
        "Ännie": [1],
        "änni": [1],
        "99000002": [1],
        "+357 (99) 000-002": [1],
        "0": [1, 0],
        "_floor": [0],
        "100%": [0],
        "secondXfloor": [],
        "9" * 30: [],
        "": [1, 0],
    }
    assert {query: [one.number for one in door.orders("ann", query)] for query in found} == found


def test_an_order_is_found_by_its_number(ledger: Ledger, door: Door):
    for _ in range(3):
        fresh(door, search="nobody", make=lambda number, at: Made("t", {}, {}))
    assert [one.number for one in door.orders("ann", "2")] == [2]


def test_places(ledger: Ledger, door: Door):
    fresh(door)
    fresh(door, place="st-2")
    assert [one.number for one in door.orders("ann", places=["st-2", "st-9"])] == [1]


def test_where_an_order_stands_is_read_with_it(ledger: Ledger, door: Door):
    accepted = fresh(door)
    signal = signals.Signal(accepted.order_id, "shipped", "erp:1", {}, {"status": "in_work"})
    signals.signal(ledger, [signal])
    listed = door.order("ann", 0)
    assert listed is not None
    assert listed.state == State.READY.value
    assert listed.signals == {"shipped"}
    assert listed.facts == {"partner": "ann", "status": "in_work"}
    assert list(door.orders("ann")) == [listed]
    assert door.order("bob", 0) is None
    assert door.order("ann", 1) is None


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_five_tokens_of_a_holder_live(ledger: Ledger, door: Door):
    door.add_token("bob", "bob's")
    for number in range(7):
        door.add_token("ann", f"digest {number}")
    live = [number for number in range(7) if door.live_token([f"digest {number}"]) is not None]
    assert live == [2, 3, 4, 5, 6]
    assert door.live_token(["no", "bob's"]) == "bob's"
    assert door.live_token([]) is None
    assert Door(ledger, "other").live_token(["bob's"]) is None


def test_logins_at_once_leave_five(ledger: Ledger, door: Door):
    at_once([partial(door.add_token, "ann", f"digest {number}") for number in range(12)])
    assert count(ledger, inbound_tokens) == 5


def updates_of_requests(ledger: Ledger, work: Callable[[], Any]) -> list[str]:
    """How SQLite finds the rows of each update of requests that `work` makes."""
    made: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        if text.startswith("UPDATE inbound_requests"):
            made.append((text, values))

    event.listen(ledger.engine, "before_cursor_execute", note)
    work()
    event.remove(ledger.engine, "before_cursor_execute", note)
    with ledger.reading() as connection:
        found = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all() for text, values in made]
    return [" ".join(str(row.detail) for row in rows) for rows in found]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_what_is_looked_at_does_not_grow_with_the_ledger(ledger: Ledger, door: Door):
    (keyed,) = updates_of_requests(ledger, lambda: fresh(door, key="k-1"))
    assert "(system=? AND sender=? AND request_key=?)" in keyed
    (purged,) = updates_of_requests(ledger, lambda: inbound.purge(ledger, "acme"))
    assert "ix_inbound_requests_keys (system=? AND created_at<?)" in purged


def test_the_key_of_another_sender_is_not_touched(ledger: Ledger, door: Door):
    fresh(door, key="k-1", same="bobs", sender="bob")
    age(ledger, inbound_requests, 30.1)
    fresh(door, key="k-1", same="anns")
    with ledger.reading() as connection:
        keys = connection.execute(select(inbound_requests.c.request_key)).scalars().all()
    assert keys == ["k-1", "k-1"]


# -- purging ----------------------------------------------------------------------------------------------------------


def test_images_that_no_order_took_go_after_a_week(ledger: Ledger, door: Door):
    linked = fresh(door)
    (young,) = uploaded(Door(ledger, "other"))
    (old,) = uploaded(door)
    age(ledger, inbound_images, 6.9)
    inbound.purge(ledger, "acme")
    assert door.image("ann", old) is not None
    age(ledger, inbound_images, 7.1)
    inbound.purge(ledger, "acme")
    assert door.image("ann", old) is None
    assert Door(ledger, "other").image("ann", young) is not None
    assert len(inbound.images_of(ledger, linked.order_id)) == 1


def test_keys_are_forgotten_after_30_days_and_orders_are_not(ledger: Ledger, door: Door):
    fresh(door, key="k-1", same="old")
    age(ledger, inbound_requests, 30.1)
    inbound.purge(ledger, "acme")
    assert fresh(door, key="k-1", same="new").number == 1
    assert [one.number for one in door.orders("ann")] == [1, 0]


def test_an_answer_is_kept_as_json(ledger: Ledger, door: Door):
    fresh(door)
    with ledger.reading() as connection:
        assert json.loads(connection.execute(select(inbound_requests.c.answer)).scalar_one())["_id"] == 0
