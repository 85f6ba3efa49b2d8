"""One worker process: Celery's worker on threads, with a pulse, a sweep, and room kept for the next orders."""

import gc
import os
import socket
import threading
import time
import uuid
from typing import Any

import structlog
from celery import Celery, bootsteps
from sqlalchemy.exc import SQLAlchemyError

from tasks.base import Fleet
from tasks.bulkhead import Bulkhead
from tasks.dispatch import BrokerAway, Dispatcher
from tasks.gates import Gates
from tasks.pulse import Pulse
from tasks.runner import Runner
from tasks.sweep import EVERY, Sweep
from tasks.ticks import Ticks
from workers.beat import register_ticks
from workers.bootstrap import build_fleet
from workers.celery import Runtime, build_app, queue_depth, send_chain, send_news
from workers.settings import Settings

WINDOW_PER_THREAD = 4
"""Orders in flight per step thread: enough that no thread waits, few enough that the broker stays small."""

TROUBLED_EVERY = 0.1
"""Seconds between looks for what may go while a remote is in trouble: it is tried, and then goes on, without delay."""

EVENTS_EVERY = 0.25
EVENTS_BUFFERED = 400

log = structlog.get_logger(__name__)


def worker_name() -> str:
    """A name that no other process has, ever: a restarted worker is another one."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Housekeeping:
    """The worker's own thread: refills the window when it runs low, and sweeps every second."""

    def __init__(self, dispatcher: Dispatcher, sweep: Sweep, gates: Gates, threads: int) -> None:
        self._dispatcher = dispatcher
        self._gates = gates
        self._sweep = sweep
        self._batch = threads
        self._finished = 0
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wanted.set()
        self._thread.join(timeout=10)

    def finished(self, system: str, ready: int | None) -> None:
        """A message of `system` is done; `ready` is its order, if it can be sent again at once."""
        self._finished += 1
        if ready is not None or self._finished >= self._batch:
            self._wanted.set()

    def _run(self) -> None:
        swept = float("-inf")
        while not self._stop.is_set():
            pause = TROUBLED_EVERY if self._gates.troubled else EVERY
            self._wanted.wait(max(0.0, min(swept + EVERY - time.monotonic(), pause)))
            self._wanted.clear()
            self._finished = 0
            try:
                if time.monotonic() >= swept + EVERY:
                    self._sweep.run()
                    swept = time.monotonic()
                self._dispatcher.fill()
            except (SQLAlchemyError, BrokerAway) as error:
                log.warning("housekeeping has to wait", action="housekeeping_failed", error=str(error)[:300])
                self._stop.wait(EVERY)
            except Exception as error:  # whatever it is: without this thread nothing would be mended any more
                log.error("housekeeping failed by our own fault", action="bug", exc_info=error)
                self._stop.wait(EVERY)


class _ConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """Keeps the consumer at hand: it owns the event dispatcher, a new one after every reconnect."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, c: Any) -> None:
        c.app.runtime.consumer = c
        if c.hub is not None and c.event_dispatcher is not None:
            # Celery flushes buffered events in every turn of its loop, which is a PUBLISH for nearly every event.
            c.event_dispatcher.on_send_buffered = None
            c.event_dispatcher.buffer_limit = EVENTS_BUFFERED
            c.hub.call_repeatedly(EVENTS_EVERY, c.event_dispatcher.flush)


class _WorkerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts and stops what the worker needs beside Celery, in the right order around its pool."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        parent.app.runtime.start()

    def close(self, parent: Any) -> None:
        parent.app.runtime.stopping = True

    def stop(self, parent: Any) -> None:
        parent.app.runtime.stop()


class WorkerRuntime(Runtime):
    """The runtime of a worker process."""

    def __init__(self, app: Celery, fleet: Fleet, name: str, threads: int, pulse: Pulse) -> None:
        gates = Gates(fleet.ledger, Bulkhead(threads))
        super().__init__(app, fleet, Runner(fleet, pulse, gates))
        self.pulse = pulse
        self.dispatcher = Dispatcher(
            fleet.ledger,
            gates,
            fleet.lanes,
            lambda system, run: send_chain(app, system, run),
            window=threads * WINDOW_PER_THREAD,
        )
        self.ticks = Ticks(fleet, self.dispatcher, gates, name)
        sweep = Sweep(
            fleet.ledger,
            self.dispatcher,
            self.runner,
            lambda system: queue_depth(app, system),
            lambda system, account: send_news(app, system, account),
            name,
        )
        self._housekeeping = Housekeeping(self.dispatcher, sweep, gates, threads)
        self.on_finished = self._housekeeping.finished

    def start(self) -> None:
        """Show life, then take part."""
        self.pulse.start()
        self._housekeeping.start()

    def stop(self) -> None:
        """Leave in good order."""
        self.stopping = True
        self._housekeeping.stop()
        try:
            self.pulse.stop()
        except SQLAlchemyError as error:
            log.warning("could not sign off; the lease will run out", action="sign_off_failed", error=str(error)[:300])


def build_worker(settings: Settings, **fleet_options: Any) -> Celery:
    """The Celery application of a worker process, with its runtime. Raises `WrongSettings` without a broker."""
    name = worker_name()
    pulse_of: list[Pulse] = []
    fleet = build_fleet(settings, before_write=lambda: pulse_of[0].check(), **fleet_options)
    pulse_of.append(Pulse(fleet.ledger, name))
    app = build_app(settings.broker_url or "", settings.systems)
    app.runtime = WorkerRuntime(app, fleet, name, settings.concurrency, pulse_of[0])
    register_ticks(app, fleet)
    app.steps["worker"].add(_WorkerStep)
    app.steps["consumer"].add(_ConsumerStep)
    return app


def run_worker(app: Celery, settings: Settings, *, log_level: str = "INFO") -> None:
    """Serve every queue until told to stop (SIGTERM: what runs is finished first)."""
    # What is loaded by now stays: looking through it for garbage again and again took a twelfth of the CPU time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={settings.concurrency}",
            "--without-gossip",
            "--without-mingle",
            f"--hostname=fleet-{os.getpid()}@%h",
            f"--loglevel={log_level}",
        ]
    )
