"""A plain Celery chain: one task a step, two prefork processes, acknowledged late, a committed record per step.

`python -m bench.comparators.celery_chain worker|producer`, in the harness's environment.
"""

import sys
from collections.abc import Callable

from celery import Celery, chain
from celery.signals import worker_process_init, worker_ready

from bench.place import Place, produce_on_demand, say, this_place
from bench.store import Store
from bench.work import Caller, Step, erp_row

PROCESSES = 2


class Hands:
    """What a worker process works with; made after the fork, because sockets do not survive one."""

    store: Store
    caller: Caller

    def make(self, place: Place) -> None:
        self.store = Store(place.database)
        self.caller = Caller(place.remote)


def build_app(place: Place) -> Celery:
    """The application with a task for each step, named after it; connects to nothing."""
    app = Celery("bench", broker=place.broker)
    app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)
    hands = Hands()
    worker_process_init.connect(lambda **_: hands.make(place), weak=False)
    for position, step in enumerate(place.steps):
        app.task(_work(hands, step, position), name=f"bench.{step.name}")
    return app


def _work(hands: Hands, step: Step, position: int) -> Callable[[int], None]:
    def work(order: int) -> None:
        if step.in_erp:
            hands.store.put_order(erp_row(order))
        else:
            hands.caller.make(step, order)
        hands.store.record(order, position)

    return work


def work_until_told(app: Celery) -> None:
    """Be a worker until SIGTERM."""
    worker_ready.connect(lambda **_: say("ready"), weak=False)
    app.worker_main(["worker", "--pool=prefork", f"--concurrency={PROCESSES}", "--loglevel=WARNING"])


def send(app: Celery, place: Place, orders: range) -> None:
    """A chain for each order."""
    tasks = [app.tasks[f"bench.{step.name}"] for step in place.steps]
    for order in orders:
        chain(*(task.si(order) for task in tasks)).apply_async()


def main() -> None:
    """The command line."""
    place = this_place()
    app = build_app(place)
    if sys.argv[1] == "worker":
        work_until_told(app)
    else:
        produce_on_demand(lambda orders: send(app, place, orders))


if __name__ == "__main__":
    main()
