"""The bell: what came in is sent soon, nobody waits for it, and what it cannot send is left to the sweep."""

import threading
import time

from kombu import Connection

from ledger import intake, upkeep
from orders.arrival import Arrival
from orders.outcomes import Planned
from tasks.dispatch import BrokerAway
from tests.flows.harness import wait_for
from tests.unit.webhooks.test_base import Receiving
from workers.bell import Bell


class Sent:
    def __init__(self) -> None:
        self.fills = 0
        self.news: list[tuple[str, str]] = []

    def fill(self) -> None:
        self.fills += 1

    def tell_news(self, system: str, account: str) -> None:
        self.news.append((system, account))


def test_one_ring_for_all_that_came_in_meanwhile():
    sent = Sent()
    first, goes_on = threading.Event(), threading.Event()

    def fill() -> None:
        sent.fill()
        first.set()
        goes_on.wait(30)

    bell = Bell(fill, sent.tell_news, every=0.0)
    bell.ring("acme", [1])
    assert first.wait(10)
    for number in range(5000):  # while the first still hangs: nobody waits
        bell.ring("acme", [number])
        bell.news("acme", ["north", "south"])
    bell.ring("acme", [])
    goes_on.set()
    bell.stop()
    assert sent.fills == 2
    assert sent.news == [("acme", "north"), ("acme", "south")]


def test_nothing_to_tell_is_not_told():
    sent = Sent()
    bell = Bell(sent.fill, sent.tell_news)
    bell.ring("acme", [])
    bell.news("acme", [])
    bell.stop()
    assert (sent.fills, sent.news) == (0, [])


def test_a_broker_that_is_away_ends_nothing():
    told: list[str] = []

    def fill() -> None:
        told.append("fill")
        if len(told) == 1:
            raise BrokerAway("no broker")

    bell = Bell(fill, lambda system, account: None, every=0.0, patience=0.01)
    bell.ring("acme", [1])
    wait_for(lambda: len(told) == 1, "the first is tried")
    bell.ring("acme", [2])
    wait_for(lambda: len(told) == 2, "the second is tried")
    bell.stop()


def test_a_live_worker_is_rung_for(ledger_url, valkey):
    web = Receiving(ledger_url, valkey.url)
    upkeep.beat(web.ledger, "w1")
    try:
        with Connection(valkey.url) as connection:
            web.post({"id": 2})
            wait_for(lambda: depth(connection, "fleet") == 1, "a worker is rung for")
            web.post({"id": 2, "more": 1})
            wait_for(lambda: depth(connection, "fleet") == 2, "and told of news")
    finally:
        web.close()


def test_without_a_worker_nothing_piles_up_in_the_broker(ledger_url, valkey):
    web = Receiving(ledger_url, valkey.url)
    web.post({"id": 1})
    web.close()  # rings for what is left
    with Connection(valkey.url) as connection:
        assert depth(connection, "fleet") == 0


def test_a_webhook_is_acknowledged_at_once_while_the_broker_is_down(ledger_url):
    web = Receiving(ledger_url)
    try:
        began = time.monotonic()
        for number in range(20):
            assert web.post({"id": number}).status_code == 200
        print(f"20 acknowledged in {time.monotonic() - began:.2f} s without a broker")
        intake.take_in(web.ledger, "acme", [Arrival("north", "x", "x", "x", "{}", (Planned("acme.fetch"),))])
        assert len(web.orders()) == 21
    finally:
        web.close()


def depth(connection: Connection, queue: str) -> int:
    try:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
