"""Broker, queues, and one Celery task per step. What a task does is in `tasks/`; how it is sent and shown is here."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from celery import Celery, Task, uuid
from celery.exceptions import Ignore, Retry
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis
from redis.exceptions import RedisError

from ledger import queries
from ledger.models import SUSPECT
from ledger.records import Claim
from ledger.sending import ToSend
from orders.model import Order
from orders.states import State
from tasks.base import STEPS, Fleet
from tasks.dispatch import BrokerAway
from tasks.runner import Ending, Runner
from workers.quarantine import run_in_quarantine

FLEET_QUEUE = "fleet"
"""Polls and feeds; steps go to the queue named after their system."""
MESSAGE_SECONDS = 60.0
"""How long one message may keep a thread: what is left of its chain then goes round the broker."""
VISIBILITY_SECONDS = 3600
"""Well above the longest step, so that Redis does not hand out a message that is being worked on."""


class GaveUp(Exception):
    """The step needs a person: shown as FAILURE, with the reason."""


class Channel(redis.Channel):  # type: ignore[misc]  # kombu has no types
    """kombu makes a new client for each message, acknowledgement and send, and with it all its tables of callbacks:
    0.05 ms of CPU time each. A client holds nothing but the pool of connections, so one does for all."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self.connection is None or self.connection.client is None:
            # kombu has let the connection go. What is acknowledged now is acknowledged to nobody: an error that it
            # expects and logs, where its own AttributeError ends the worker.
            raise ConnectionError("the connection to the broker is closed")
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()
        return self._kept


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's, with this `Channel`."""

    Channel = Channel


def build_app(broker_url: str, systems: tuple[str, ...]) -> Celery:
    """A Celery application for these systems; connects to nothing."""
    app = Celery("orderfleet", broker=broker_url, set_as_current=True)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=True,
        task_default_queue=FLEET_QUEUE,
        task_queues=[_queue(name) for name in (FLEET_QUEUE, *systems)],
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=True,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport=f"{__name__}:Transport" if urlsplit(broker_url).scheme == "redis" else None,
        broker_transport_options=_transport_options(broker_url),
        redis_socket_timeout=15,
        redis_socket_connect_timeout=5,
        redis_socket_keepalive=True,
        redis_retry_on_timeout=True,
        enable_utc=True,
        timezone="UTC",
    )
    for name in STEPS:
        app.register_task(_step_task(name))
    return app


def _queue(name: str) -> Queue:
    """A queue with an exchange of its own. Left out, Celery gives every queue the default one's exchange and routing
    key, and each message would reach them all."""
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def _transport_options(broker_url: str) -> dict[str, Any]:
    if urlsplit(broker_url).scheme not in ("redis", "rediss"):
        return {}
    return {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": True,
        "max_connections": 100,
        # How long a send insists while the broker is away. The ledger keeps what was to be sent; a worker's own
        # connection comes back by itself, for ever.
        "max_retries": 1,
        "interval_start": 0.1,
        "interval_step": 0.0,
        "interval_max": 0.1,
    }


def _step_task(name: str) -> Task:
    return type("Step", (StepTask,), {"name": name, "__module__": __name__})()


class StepTask(Task):  # type: ignore[misc]  # celery has no types
    """Runs its step, and the following ones of the same chain itself: they need not go round the broker.

    Celery sends on whatever is left in `request.chain` when the task has succeeded."""

    abstract = True
    ignore_result = True
    typing = False
    throws = (GaveUp,)

    def run(self, order: int, position: int, **unknown: Any) -> str:
        """Run one step of one order, and as many links of the chain as may go. Ids only: `order` is the ledger's.

        Unknown arguments come from newer senders and are let be."""
        runtime: Runtime = self.app.runtime
        links = self.request.chain or []
        message = Message(runtime, links, self.request.root_id or self.request.id)
        claim = message.claim(order, position, self.name)
        if claim is None:
            links.clear()
            return "not this message's turn"
        if claim.crashes >= SUSPECT:
            links.clear()
            ending = runtime.quarantine(claim)
            runtime.finished(claim, ending)
            return _shown(ending)
        return _shown(message.run_from(claim))


def _shown(ending: Ending) -> str:
    """The task's return value, or the exception that makes Celery and Flower show how it ended."""
    if ending.good:
        return ending.reason or ending.kind
    if ending.kind == "fenced":
        raise Ignore
    if ending.kind in ("retry", "unavailable", "busy"):
        raise Retry(ending.reason)
    raise GaveUp(ending.reason)


class Message:
    """One broker message at work: the first link is Celery's own task, the others are run here (fused)."""

    def __init__(self, runtime: "Runtime", links: list[Any], root_id: str) -> None:
        self._runtime = runtime
        self._links = links
        self._root_id = root_id
        self._until = time.monotonic() + MESSAGE_SECONDS

    def claim(self, order: int, position: int, step: str) -> Claim | None:
        """The claim for the first link, or for a later one if the order has already come further."""
        runner = self._runtime.runner
        claim = runner.claim(order, position, step)
        if claim is not None:
            return claim
        stands = queries.position_of(self._runtime.fleet.ledger, order)
        if stands is None:
            return None
        while self._links:
            link = self._links.pop()
            if link["kwargs"]["position"] == stands[0]:
                return runner.claim(order, stands[0], link["task"])
        return None

    def run_from(self, claim: Claim) -> Ending:
        """Run the claimed step and go on with the chain's links; returns how the first ended."""
        first = ending = self._runtime.runner.run(claim, self._then)
        while ending.next is not None:
            link = self._links.pop()
            ending = self._fused(link, ending.next, ending.order)
        if ending.state != State.QUEUED:
            self._links.clear()
        self._runtime.finished(claim, ending)
        return first

    def _then(self, position: int, step: str) -> State:
        """What becomes of the order if its next step may run: see `tasks.runner.Then`."""
        if not self._links:
            return State.READY
        link = self._links[-1]
        if link["task"] != step or link["kwargs"]["position"] != position:
            return State.READY  # the plan has changed since this message was sent
        if self._runtime.stopping or time.monotonic() > self._until:
            return State.QUEUED
        return State.RUNNING

    def _fused(self, link: Any, claim: Claim, order: Order | None) -> Ending:
        """Run one link as Celery would have, with the events that show it under its own name and id."""
        send = self._runtime.send_event
        task_id = link["options"]["task_id"]
        began = time.monotonic()
        send(
            "task-received",
            uuid=task_id,
            name=link["task"],
            args="()",
            kwargs=repr(link["kwargs"]),
            root_id=self._root_id,
            parent_id=self._root_id,
            retries=0,
            eta=None,
            expires=None,
        )
        send("task-started", uuid=task_id)
        ending = self._runtime.runner.run(claim, self._then, order)
        try:
            result = _shown(ending)
        except Retry as retry:
            send("task-retried", uuid=task_id, exception=str(retry), traceback="")
        except GaveUp as gave_up:
            send("task-failed", uuid=task_id, exception=repr(gave_up), traceback="")
        except Ignore:
            send("task-rejected", uuid=task_id, requeue=False)
        else:
            send("task-succeeded", uuid=task_id, result=repr(result), runtime=time.monotonic() - began)
        return ending


class Runtime:
    """What the tasks of one worker process share. Set as `app.runtime` by `workers.worker`."""

    def __init__(self, app: Celery, fleet: Fleet, runner: Runner) -> None:
        self.app = app
        self.fleet = fleet
        self.runner = runner
        self.stopping = False
        self.consumer: Any = None
        self.on_finished: Any = lambda system, ready: None
        self.quarantine: Callable[[Claim], Ending] = lambda claim: run_in_quarantine(runner, claim)

    def send_event(self, kind: str, **fields: Any) -> None:
        """A task event, as Celery's own worker sends them."""
        dispatcher = self.consumer.event_dispatcher if self.consumer is not None else None
        if dispatcher is not None:
            dispatcher.send(kind, **fields)

    def finished(self, claim: Claim, ending: Ending) -> None:
        """A message is done: there is room for another order, and this one may be ready to be sent again."""
        self.on_finished(claim.system, claim.id if ending.state == State.READY else None)


def send_chain(app: Celery, system: str, run: ToSend) -> None:
    """Send an order's run of steps as one Celery chain. Raises `BrokerAway`.

    This is the message that `celery.chain(...).apply_async()` sends (a test compares them), without the copies that
    the canvas makes on the way there: two thirds of its CPU time."""
    if not run.links:
        return
    ids = [uuid() for _ in run.links]
    links = [
        _link(name, {"order": run.order_id, "position": position}, task_id, system)
        for (position, name), task_id in zip(run.links, ids, strict=True)
    ]
    with broker_errors():
        app.send_task(
            links[0]["task"],
            kwargs=links[0]["kwargs"],
            task_id=ids[0],
            root_id=ids[0],
            queue=system,
            chain=links[:0:-1],
            ignore_result=True,
            retry=False,
        )


FILL_TASK = "fleet.fill"
"""The name of the task that has a worker look for orders that are ready."""


def send_fill(app: Celery) -> None:
    """Have a worker look for orders that are ready, now. Raises `BrokerAway`."""
    with broker_errors():
        app.send_task(FILL_TASK, queue=FLEET_QUEUE, ignore_result=True, retry=False)


def news_task(system: str) -> str:
    """The name of the task that reads known orders of a system again of which there is news."""
    return f"{system}.news"


def send_news(app: Celery, system: str, account: str) -> None:
    """Have a worker read what is new at an account. Raises `BrokerAway`."""
    with broker_errors():
        app.send_task(
            news_task(system), kwargs={"account": account}, queue=FLEET_QUEUE, ignore_result=True, retry=False
        )


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what kombu and its transports raise for a broker that is away into `BrokerAway`."""
    try:
        yield
    except (OperationalError, RedisError, AMQPError, OSError) as error:
        raise BrokerAway(str(error)) from error


def _link(name: str, kwargs: dict[str, Any], task_id: str, queue: str) -> dict[str, Any]:
    return {
        "task": name,
        "args": [],
        "kwargs": kwargs,
        "options": {"task_id": task_id, "queue": queue},
        "subtask_type": None,
        "immutable": True,
    }


def queue_depth(app: Celery, system: str) -> int:
    """Messages waiting in a system's queue. Raises `BrokerAway`."""
    with broker_errors(), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        try:
            declared = connection.default_channel.queue_declare(queue=system, passive=True)
        except connection.channel_errors:
            return 0  # a queue that is not there holds no messages
        return int(declared.message_count)
