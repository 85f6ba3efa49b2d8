"""The bell: what came in is sent soon, nobody waits for it, and what it cannot send is left to the sweep."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from kombu import Connection

from ledger import records
from orders.arrival import Arrival
from orders.outcomes import Planned
from tasks.dispatch import BrokerAway
from tests.flows.harness import wait_for
from tests.unit.webhooks.test_base import Receiving
from workers.bell import Bell


class Sent:
    def __init__(self) -> None:
        self.orders: list[tuple[str, list[int]]] = []
        self.news: list[tuple[str, str]] = []

    def send_orders(self, system: str, ids: Sequence[int]) -> None:
        self.orders.append((system, list(ids)))

    def send_news(self, system: str, account: str) -> None:
        self.news.append((system, account))


def test_every_order_and_every_account_is_rung_for_once_a_batch():
    sent = Sent()
    bell = Bell(sent.send_orders, sent.send_news)
    bell.ring("acme", [1, 2])
    bell.ring("other", [3])
    bell.news("acme", ["north", "north"])
    bell.stop()
    assert sorted(number for _, ids in sent.orders for number in ids) == [1, 2, 3]
    assert {system for system, ids in sent.orders if 3 in ids} == {"other"}
    assert set(sent.news) == {("acme", "north")}


def test_ringing_never_waits_for_a_broker_that_hangs():
    hangs = threading.Event()
    rung = threading.Event()

    def hang(system: str, ids: Sequence[int]) -> None:
        rung.set()
        hangs.wait(30)

    bell = Bell(hang, lambda system, account: None)
    bell.ring("acme", [1])
    assert rung.wait(10)
    for number in range(2, 5000):  # while the first still hangs
        bell.ring("acme", [number])
    assert not hangs.is_set()
    hangs.set()
    bell.stop()


def test_a_broker_that_is_away_ends_nothing():
    told: list[Any] = []

    def away(system: str, ids: Sequence[int]) -> None:
        told.append(list(ids))
        if len(told) == 1:
            raise BrokerAway("no broker")

    bell = Bell(away, lambda system, account: None, patience=0.01)
    bell.ring("acme", [1])
    wait_for(lambda: told == [[1]], "the first is tried")
    bell.ring("acme", [2])
    wait_for(lambda: told == [[1], [2]], "the second is tried")
    bell.stop()


def test_a_webhook_s_order_is_in_the_queue_without_any_worker(ledger_url, valkey):
    web = Receiving(ledger_url, valkey.url)
    try:
        web.post({"id": 7})
        with Connection(valkey.url) as connection:
            wait_for(lambda: depth(connection, "acme") == 1, "the order is sent")
        (row,) = web.states()
        assert row == "queued"
        web.post({"id": 7, "more": 1})
        with Connection(valkey.url) as connection:
            wait_for(lambda: depth(connection, "fleet") == 1, "a worker is told of the news")
    finally:
        web.close()


def test_a_webhook_is_acknowledged_at_once_while_the_broker_is_down(ledger_url):
    web = Receiving(ledger_url)
    try:
        began = time.monotonic()
        for number in range(20):
            assert web.post({"id": number}).status_code == 200
        print(f"20 acknowledged in {time.monotonic() - began:.2f} s without a broker")
        records.take_in(web.ledger, "acme", [Arrival("north", "x", "x", "x", "{}", (Planned("acme.fetch"),))])
        assert len(web.orders()) == 21
    finally:
        web.close()


def depth(connection: Connection, queue: str) -> int:
    try:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
