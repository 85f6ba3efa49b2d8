"""One procrastinate job an order, whose steps are recorded one by one: what is recorded is not done again.

`python -m bench.comparators.procrastinate_job worker|producer`, in the harness's environment; PostgreSQL only. The
job's own statements go through psycopg's pool, which procrastinate brings along and which is lighter than SQLAlchemy;
orders are deferred by the page, as a poll would find them.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from procrastinate import App, BaseConnector, PsycopgConnector, SyncPsycopgConnector
from procrastinate.types import JSONDict
from psycopg_pool import ConnectionPool

from bench.place import Place, produce_on_demand, say, this_place
from bench.work import Caller, Step, erp_row

PAGE = 100
TASK = "bench.order"

_PUT_ORDER = """
INSERT INTO bench_erp_order (external_reference, reference, stage, currency, total, document)
VALUES (%(external_reference)s, %(reference)s, %(stage)s, %(currency)s, %(total)s, %(document)s)
ON CONFLICT DO NOTHING
"""
_RECORDED = "SELECT position FROM bench_step_done WHERE order_id = %s"
_RECORD = "INSERT INTO bench_step_done (order_id, position, outcome) VALUES (%s, %s, 'done') ON CONFLICT DO NOTHING"


class OrderJob:
    """The job's work; one pool and one session for all threads."""

    def __init__(self, place: Place) -> None:
        self._steps = place.steps
        self._caller = Caller(place.remote, threads=place.threads)
        self._pool = ConnectionPool(
            _conninfo(place), min_size=4, max_size=place.threads, kwargs={"autocommit": True}, open=True
        )

    def run(self, order: int) -> None:
        """Do the steps that are not recorded yet, and record each before the next."""
        with self._pool.connection() as connection:
            recorded = {row[0] for row in connection.execute(_RECORDED, (order,))}
        for position, step in enumerate(self._steps):
            if position not in recorded:
                self._do(step, order, position)

    def _do(self, step: Step, order: int, position: int) -> None:
        if not step.in_erp:
            self._caller.make(step, order)
        with self._pool.connection() as connection:
            if step.in_erp:
                connection.execute(_PUT_ORDER, erp_row(order))
            connection.execute(_RECORD, (order, position))


def _conninfo(place: Place) -> str:
    return place.database.replace("+psycopg", "")


def build_app(connector: BaseConnector, place: Place, *, worker: bool) -> App:
    """The application with its one task; connects to nothing, unless as a `worker`."""
    app = App(connector=connector)
    run = OrderJob(place).run if worker else _elsewhere
    app.task(name=TASK)(run)
    return app


def _elsewhere(order: int) -> None:
    raise RuntimeError("the producer only defers")


async def work_until_told(place: Place) -> None:
    """Be a worker until SIGTERM. A sync task runs in the loop's default executor, which is too small by default."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(place.threads))
    app = build_app(PsycopgConnector(conninfo=_conninfo(place)), place, worker=True)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        say("ready")
        await app.run_worker_async(concurrency=place.threads, shutdown_graceful_timeout=5)


def produce(place: Place) -> None:
    """Defer a job for each order asked for."""
    app = build_app(SyncPsycopgConnector(conninfo=_conninfo(place)), place, worker=False)
    with app.open():
        produce_on_demand(lambda orders: _defer(app, orders))


def _defer(app: App, orders: range) -> None:
    task = app.configure_task(TASK)
    for start in range(0, len(orders), PAGE):
        page: list[JSONDict] = [{"order": order} for order in orders[start : start + PAGE]]
        task.batch_defer(*page)


def main() -> None:
    """The command line."""
    place = this_place()
    if sys.argv[1] == "worker":
        asyncio.run(work_until_told(place))
    else:
        produce(place)


if __name__ == "__main__":
    main()
