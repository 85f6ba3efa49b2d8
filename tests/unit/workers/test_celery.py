"""What goes to the broker, and what comes back from it: real messages on a Redis made of Python."""

import base64
import json
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
import redis
from celery import Celery
from celery.exceptions import Retry
from celery.worker.request import Request
from fakeredis import TcpFakeServer
from kombu import pools
from kombu.exceptions import ContentDisallowed
from sqlalchemy import update

from ledger import intake, queries, records, sending, signals, upkeep
from ledger.connection import Ledger
from ledger.models import orders
from ledger.records import Claim
from ledger.sending import ToSend
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.errors import Refused, TryLater
from orders.outcomes import Again, Done, Ended, Planned, skipped
from orders.states import State
from tasks.base import STEPS, Account, Fleet, Job, System, step
from tasks.bulkhead import Bulkhead
from tasks.dispatch import BrokerAway
from tasks.gates import Gates
from tasks.pulse import Pulse
from tasks.runner import Ending, Runner
from workers import celery as subject
from workers.celery import FLEET_QUEUE, GaveUp, Runtime, build_app, queue_depth, send_chain

NAMES = ("acme.one", "acme.two", "acme.three", "acme.four")
PLAN = tuple(Planned(name) for name in NAMES)
LINKS = tuple(enumerate(NAMES))
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Broker:
    """fakeredis on a port: what is in its lists is what a worker would get."""

    def __init__(self) -> None:
        self._server = TcpFakeServer(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}/0"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.client = redis.Redis.from_url(self.url)

    def raw(self, queue: str) -> list[bytes]:
        """The messages of a queue, oldest first."""
        found: Any = self.client.lrange(queue, 0, -1)
        return list(reversed(found))

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """The same, parsed, with their bodies."""
        parsed = [json.loads(raw) for raw in self.raw(queue)]
        return [{**message, "body": json.loads(base64.b64decode(message["body"]))} for message in parsed]

    def close(self) -> None:
        """It may be closed twice."""
        self.client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    running = Broker()
    yield running
    running.close()


@pytest.fixture
def functions() -> Iterator[dict[str, Callable[[Job], Any]]]:
    """What each of the made-up steps does; tests put in what they need."""
    doing: dict[str, Callable[[Job], Any]] = {name: lambda job: Done() for name in NAMES}
    for name in NAMES:
        step(name)(lambda job, partner, name=name: doing[name](job))
    yield doing
    for name in NAMES:
        del STEPS[name]


@pytest.fixture
def app(broker: Broker, functions: Any) -> Iterator[Celery]:
    made = build_app(broker.url, ("acme", "other"))
    yield made
    made.close()
    pools.reset()  # kombu keeps them by address, and another test's broker may get this one's port


# === Sending ================================================================================================


def shown(message: dict[str, Any]) -> str:
    """A message without what is never the same twice: the ids."""
    return UUID.sub("<id>", json.dumps(message))


@pytest.mark.parametrize("links", [1, 2, 4])
def test_it_is_the_message_that_celerys_chain_sends(app, broker, links):
    send_chain(app, "acme", ToSend(7, LINKS[:links]))
    signatures = [app.tasks[name].si(order=7, position=position).set(queue="acme") for position, name in LINKS[:links]]
    celery.chain(*signatures).apply_async()
    ours, theirs = broker.messages("acme")
    for link in theirs["body"][2]["chain"] or ():
        del link["options"]["reply_to"]  # where results go; we keep none, and the message itself has it all the same
    assert [link["task"] for link in ours["body"][2]["chain"] or ()] == [name for _, name in LINKS[1:links][::-1]]
    assert json.loads(shown(ours)) == json.loads(shown(theirs))
    assert list(ours) == list(theirs)
    assert list(ours["headers"]) == list(theirs["headers"])


def test_ids_are_those_of_the_links_and_the_root_is_the_first(app, broker):
    send_chain(app, "acme", ToSend(7, LINKS))
    (message,) = broker.messages("acme")
    ids = [message["headers"]["id"], *(link["options"]["task_id"] for link in message["body"][2]["chain"])]
    assert len(set(ids)) == 4
    assert message["headers"]["root_id"] == ids[0]
    assert message["properties"]["correlation_id"] == ids[0]


def test_nothing_to_send(app, broker):
    send_chain(app, "acme", ToSend(7, ()))
    assert broker.raw("acme") == []


def test_each_queue_gets_its_own_messages_only(app, broker):
    send_chain(app, "acme", ToSend(1, LINKS[:2]))
    send_chain(app, "other", ToSend(2, LINKS[:1]))
    app.send_task("acme.poll", queue=FLEET_QUEUE)
    found = {queue: [message["body"][1] for message in broker.messages(queue)] for queue in ("acme", "other", "fleet")}
    assert found == {"acme": [{"order": 1, "position": 0}], "other": [{"order": 2, "position": 0}], "fleet": [{}]}


@pytest.mark.parametrize("name", ["acme", "other", FLEET_QUEUE])
def test_an_exchange_leads_to_its_own_queue_only(app, broker, name):
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
    app.send_task("acme.poll", exchange=name, routing_key=name)
    assert [queue for queue in ("acme", "other", FLEET_QUEUE) if broker.raw(queue)] == [name]


def test_what_names_no_queue_goes_to_the_fleets(app, broker):
    app.send_task("acme.poll")
    assert len(broker.raw(FLEET_QUEUE)) == 1
    assert broker.raw("acme") == broker.raw("other") == []


def test_queue_depth_counts(app):
    assert queue_depth(app, "acme") == 0
    for number in range(3):
        send_chain(app, "acme", ToSend(number, LINKS))
    assert (queue_depth(app, "acme"), queue_depth(app, "other")) == (3, 0)


@pytest.mark.parametrize("known", [False, True])
def test_a_broker_that_is_away(app, broker, known):
    app.conf.broker_transport_options |= {"max_retries": 1, "interval_start": 0.1}  # 6 s are too long for a test
    if known:
        send_chain(app, "acme", ToSend(6, LINKS))
    broker.close()
    with pytest.raises(BrokerAway):
        send_chain(app, "acme", ToSend(7, LINKS))


def test_the_depth_of_a_queue_that_is_away(app, broker):
    broker.close()
    with pytest.raises(BrokerAway):
        queue_depth(app, "acme")


# === Receiving ==============================================================================================


def receive(app: Celery, queue: str) -> list[Any]:
    """What a worker's consumer gets from a queue; an error for what it refuses to decode."""
    got: list[Any] = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = app.amqp.TaskConsumer(
            channel,
            queues=[app.amqp.queues[queue]],
            on_decode_error=lambda message, error: got.append(error),
            callbacks=[lambda body, message: got.append(body)],
        )
        with consumer:
            while not got:
                connection.drain_events(timeout=5)
    return got


def test_a_message_in_json_is_taken(app):
    send_chain(app, "acme", ToSend(7, LINKS[:1]))
    (body,) = receive(app, "acme")
    assert body[1] == {"order": 7, "position": 0}


class Bomb:
    """Whoever loads its pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_neither_loaded_nor_run(app, broker, tmp_path):
    bomb = pickle.dumps([[], {"order": 7, "position": 0}, Bomb(tmp_path / "exploded")])
    send_chain(app, "acme", ToSend(7, LINKS[:1]))
    message = json.loads(broker.raw("acme")[0])
    pickled = {"content-type": "application/x-python-serialize", "body": base64.b64encode(bomb).decode()}
    broker.client.delete("acme")
    broker.client.lpush("acme", json.dumps(message | pickled))
    (refused,) = receive(app, "acme")
    assert isinstance(refused, ContentDisallowed)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()


# === A worker at work =======================================================================================


class Events:
    """Celery's event dispatcher as a worker's consumer has one."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


class Worker:
    """One message at a time, through Celery's own request and tracer."""

    def __init__(self, app: Celery, broker: Broker, url: str) -> None:
        self.app = app
        self.broker = broker
        self.ledger = Ledger(url)
        account = Account("acme", "default", None)
        lanes = (("acme", "acme:default"), ("acme", "erp"))
        fleet = Fleet(self.ledger, None, {("acme", "default"): account}, {"acme": System("acme")}, lanes=lanes)
        pulse = Pulse(self.ledger, "w1")
        pulse.beat()
        self.runtime = Runtime(app, fleet, Runner(fleet, pulse, Gates(self.ledger, Bulkhead(8))))
        self.events = Events()
        self.runtime.consumer = SimpleNamespace(event_dispatcher=self.events)
        self.finished: list[tuple[str, int | None]] = []
        self.runtime.on_finished = lambda system, ready: self.finished.append((system, ready))
        app.runtime = self.runtime

    def close(self) -> None:
        self.ledger.close()

    def take_in(self, plan: tuple[Planned, ...] = PLAN) -> int:
        rows = [Arrival("default", "1", "row:1", "row", "{}", plan)]
        return intake.take_in(self.ledger, "acme", rows).new[0]

    def send(self, order: int) -> None:
        """What dispatch does."""
        (run,) = sending.take_ready_orders(self.ledger, [order])
        send_chain(self.app, "acme", run)

    def work(self) -> Any:
        """Take the oldest message and run it; the task's return value, or the exception that ended it."""
        with self.app.connection_for_read() as connection:
            message = connection.default_channel.basic_get("acme", no_ack=False)
            request = Request(
                message,
                app=self.app,
                hostname="w1",
                task=self.app.tasks[message.headers["task"]],
                on_ack=message.ack_log_error,
                on_reject=message.reject_log_error,
            )
            result = request.execute()
        error = getattr(result, "exception", result)
        return getattr(error, "exc", error)  # Celery wraps what is retried once more

    def state(self, order: int) -> str:
        return str(queries.find_order(self.ledger, str(order))[0]["state"])

    def attempts(self, order: int) -> list[tuple[str, str]]:
        told = queries.timeline(self.ledger, order)
        return [(entry["step"], entry["outcome"]) for entry in told if entry["kind"] == "attempt"]

    def left(self) -> list[dict[str, Any]]:
        """What is in the queue: the step and its chain, in the order in which they would run."""
        return [
            {
                "steps": [(message["body"][1]["position"], message["headers"]["task"])]
                + [(link["kwargs"]["position"], link["task"]) for link in reversed(message["body"][2]["chain"] or [])],
                "root": message["headers"]["root_id"],
                "parent": message["headers"]["parent_id"],
                "id": message["headers"]["id"],
            }
            for message in self.broker.messages("acme")
        ]


@pytest.fixture
def worker(app: Celery, broker: Broker, migrated_sqlite: Path, tmp_path: Path) -> Iterator[Worker]:
    path = tmp_path / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    made = Worker(app, broker, f"sqlite:///{path}")
    yield made
    made.close()


class TestFused:
    def test_all_links_in_one_message_and_nothing_is_sent(self, worker):
        order = worker.take_in()
        worker.send(order)
        assert worker.work() == "done"
        assert worker.left() == []
        assert worker.attempts(order) == [(name, "done") for name in NAMES]
        assert worker.state(order) == "done"
        assert worker.finished == [("acme", None)]

    def test_each_link_is_shown_under_its_own_name_and_id(self, worker, functions):
        functions["acme.two"] = lambda job: skipped("is there already")
        order = worker.take_in()
        worker.send(order)
        (message,) = worker.broker.messages("acme")
        root = message["headers"]["id"]
        links = [link["options"]["task_id"] for link in reversed(message["body"][2]["chain"])]
        worker.work()
        kinds = ["task-received", "task-started", "task-succeeded"] * 3
        assert [kind for kind, _ in worker.events.sent] == kinds
        assert [fields["uuid"] for _, fields in worker.events.sent] == [name for name in links for _ in range(3)]
        received = [fields for kind, fields in worker.events.sent if kind == "task-received"]
        assert [fields["name"] for fields in received] == list(NAMES[1:])
        assert {(fields["root_id"], fields["parent_id"]) for fields in received} == {(root, root)}
        assert received[0]["kwargs"] == f"{{'order': {order}, 'position': 1}}"
        results = [fields["result"] for kind, fields in worker.events.sent if kind == "task-succeeded"]
        assert results == ["'is there already'", "'done'", "'done'"]

    @pytest.mark.parametrize(
        ("failing", "kind", "state"),
        [
            (TryLater("not yet", status=404), "task-retried", "retrying"),
            (Refused("no such product", status=400), "task-failed", "parked"),
            (KeyError("oops"), "task-retried", "retrying"),
        ],
    )
    def test_a_link_that_fails_ends_the_chain(self, worker, functions, failing, kind, state):
        def fails(job: Job) -> Any:
            raise failing

        functions["acme.two"] = fails
        order = worker.take_in()
        worker.send(order)
        assert worker.work() == "done"
        assert worker.left() == []
        assert worker.state(order) == state
        shown_as, fields = worker.events.sent[-1]
        assert shown_as == kind
        assert str(failing.args[0]) in fields["exception"]

    def test_a_link_whose_claim_was_lost_is_shown_as_rejected(self, worker, functions):
        def overtaken(job: Job) -> Done:
            upkeep.take_over(worker.ledger, job.claim.id, job.claim.fence, park_at=9, reason="slow")
            return Done()

        functions["acme.two"] = overtaken
        order = worker.take_in()
        worker.send(order)
        worker.work()
        assert worker.events.sent[-1][0] == "task-rejected"
        assert worker.left() == []
        assert worker.state(order) == "ready"

    def test_without_a_consumer_nothing_is_shown_and_all_is_done(self, worker):
        worker.runtime.consumer = None
        order = worker.take_in()
        worker.send(order)
        worker.work()
        assert (worker.state(order), worker.events.sent) == ("done", [])


class TestSentOn:
    def check_the_rest(self, worker: Worker, order: int, root: str) -> None:
        (rest,) = worker.left()
        assert rest["steps"] == [(2, "acme.three"), (3, "acme.four")]
        assert (rest["root"], rest["parent"]) == (root, root)
        assert worker.state(order) == "queued"
        assert worker.attempts(order) == [("acme.one", "done"), ("acme.two", "done")]

    def roots(self, worker: Worker) -> list[str]:
        return [str(message["headers"]["id"]) for message in worker.broker.messages("acme")]

    def test_when_the_message_has_had_its_time(self, worker, functions, monkeypatch):
        begun: list[str] = []

        def two(job: Job) -> Done:
            begun.extend(root)
            monkeypatch.setattr(time, "monotonic", lambda: later)
            return Done()

        later = time.monotonic() + subject.MESSAGE_SECONDS + 1
        functions["acme.two"] = two
        order = worker.take_in()
        worker.send(order)
        root = self.roots(worker)
        worker.work()
        monkeypatch.undo()
        self.check_the_rest(worker, order, root[0])
        worker.work()
        assert worker.state(order) == "done"
        assert worker.left() == []

    def test_when_the_worker_is_stopping(self, worker, functions):
        def two(job: Job) -> Done:
            worker.runtime.stopping = True
            return Done()

        functions["acme.two"] = two
        order = worker.take_in()
        worker.send(order)
        root = self.roots(worker)
        worker.work()
        self.check_the_rest(worker, order, root[0])
        worker.runtime.stopping = False
        worker.work()
        assert worker.state(order) == "done"
        assert [step for step, _ in worker.attempts(order)] == list(NAMES)

    def test_but_not_while_a_signal_is_awaited(self, worker):
        plan = (*PLAN[:2], Planned("acme.three", awaits="told"), PLAN[3])
        order = worker.take_in(plan)
        worker.send(order)
        (message,) = worker.left()
        assert message["steps"] == [(0, "acme.one"), (1, "acme.two")]
        worker.work()
        assert (worker.left(), worker.state(order)) == ([], "waiting")
        signals.signal(worker.ledger, [Signal(order, "told", "test")])
        worker.send(order)
        worker.work()
        assert worker.state(order) == "done"

    def test_nor_when_the_plan_has_become_another_one(self, worker, functions):
        functions["acme.two"] = lambda job: Done(rest=(Planned("acme.four"),))
        order = worker.take_in()
        worker.send(order)
        worker.work()
        assert (worker.left(), worker.state(order)) == ([], "ready")
        assert worker.finished == [("acme", order)]
        worker.send(order)
        worker.work()
        assert worker.attempts(order)[-1] == ("acme.four", "done")

    def test_nor_when_the_plan_has_ended(self, worker, functions):
        functions["acme.two"] = lambda job: Ended("not ours")
        order = worker.take_in()
        worker.send(order)
        worker.work()
        assert (worker.left(), worker.state(order)) == ([], "ignored")

    def test_nor_when_a_step_goes_on_in_parts(self, worker, functions):
        functions["acme.two"] = lambda job: Again("told", "half")
        order = worker.take_in()
        worker.send(order)
        worker.work()
        assert (worker.left(), worker.state(order)) == ([], "waiting")


class TestFirstLink:
    def test_a_double_does_nothing(self, worker, functions):
        runs: list[int] = []

        def one(job: Job) -> Done:
            runs.append(job.claim.position)
            return Done()

        functions["acme.one"] = one
        order = worker.take_in(PLAN[:1])
        worker.send(order)
        send_chain(worker.app, "acme", ToSend(order, LINKS[:2]))
        assert [worker.work(), worker.work()] == ["done", "not this message's turn"]
        assert (runs, worker.left()) == ([0], [])

    def test_a_message_for_an_order_that_is_further_goes_on_there(self, worker):
        order = worker.take_in()
        sending.take_ready_orders(worker.ledger, [order])
        claim = records.claim(worker.ledger, order, 0, "acme.one", "w2")
        assert claim is not None
        records.done(worker.ledger, claim, Done(), State.READY)
        send_chain(worker.app, "acme", ToSend(order, LINKS))
        worker.work()
        assert worker.attempts(order) == [(name, "done") for name in NAMES]
        assert worker.left() == []

    def test_one_that_another_worker_holds_is_left_alone(self, worker):
        order = worker.take_in()
        worker.send(order)
        assert records.claim(worker.ledger, order, 0, "acme.one", "w2") is not None
        assert worker.work() == "not this message's turn"
        assert (worker.left(), worker.state(order)) == ([], "running")

    def test_an_order_that_is_gone(self, worker):
        send_chain(worker.app, "acme", ToSend(99, LINKS))
        assert worker.work() == "not this message's turn"
        assert worker.left() == []

    def test_arguments_of_newer_senders_are_let_be(self, worker):
        order = worker.take_in()
        sending.take_ready_orders(worker.ledger, [order])
        worker.app.send_task("acme.one", kwargs={"order": order, "position": 0, "colour": "red"}, queue="acme")
        assert worker.work() == "done"
        assert worker.state(order) == "ready"

    @pytest.mark.parametrize(
        ("failing", "shown_as"),
        [(TryLater("not yet", status=404), Retry), (Refused("no such product", status=400), GaveUp)],
    )
    def test_how_it_failed_is_shown_and_nothing_is_sent(self, worker, functions, failing, shown_as):
        def fails(job: Job) -> Any:
            raise failing

        functions["acme.one"] = fails
        order = worker.take_in()
        worker.send(order)
        error = worker.work()
        assert type(error) is shown_as
        assert str(error) == failing.reason
        assert worker.left() == []
        assert worker.events.sent == []

    def test_a_suspect_goes_into_quarantine(self, worker, functions):
        held: list[Claim] = []

        def quarantine(claim: Claim) -> Ending:
            held.append(claim)
            return Ending("done", "ran in a process of its own")

        def never(job: Job) -> Any:
            raise AssertionError("it was run in the worker")

        functions["acme.one"] = never
        worker.runtime.quarantine = quarantine
        order = worker.take_in()
        worker.send(order)
        with worker.ledger.transaction() as connection:
            connection.execute(update(orders).values(crashes=2))
        assert worker.work() == "ran in a process of its own"
        assert [claim.id for claim in held] == [order]
        assert worker.left() == []
