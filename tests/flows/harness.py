"""A real fleet for a test: a broker, a shop and an ERP on loopback, and worker processes that may be killed."""

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery import Celery
from flask import Flask, Response, request
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger import queries
from ledger.connection import Ledger
from ledger.migrate import migrate
from orders.states import FINISHED, NEEDS_A_PERSON
from sandbox import base, cloudsuite
from sandbox.erp import SandboxErp
from tasks.base import Visit
from tasks.bulkhead import Bulkhead
from tasks.dispatch import Dispatcher
from tasks.gates import Gates
from tests.flows.processes import ForkedProcess
from workers.bootstrap import build_fleet
from workers.celery import build_app, send_chain
from workers.sandbox import imitation
from workers.settings import Settings, read_settings
from workers.web import create_app

ROOT = Path(__file__).resolve().parents[2]
SETTLED = {*FINISHED, *NEEDS_A_PERSON}


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = 60.0) -> Any:
    """Poll until `condition` holds; its value. Raises `AssertionError` saying `what` did not happen."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")


class Remote:
    """The imitation of one system, in this process, behind real HTTP, as one account of the fleet."""

    def __init__(self, system: str, server: base.Server, app: Flask, account: str = "default") -> None:
        self.system = system
        self.account = account
        self.url = server.url
        self.app = app
        self.control = base.control_of(app)

    def settings(self) -> dict[str, str]:
        """The settings that point a fleet at it, with short times."""
        prefix = self.system.upper()
        own: dict[str, str] = imitation(self.system).fleet_settings(self.url)
        own |= {f"{prefix}_POLL_SECONDS": "0.5", f"{prefix}_TIMEOUT": "5"}
        if self.account != "default":
            own = {name.replace(prefix, f"{prefix}_{self.account.upper()}", 1): value for name, value in own.items()}
        return own | {"ERP_POLL_SECONDS": "0.3"}

    def point_at(self, web: str) -> None:
        """Webhooks go to the web server at `web`."""
        imitation(self.system).point_at(self.app, web, account=self.account)

    def when(self, method: str, act: Callable[[], Any], path: str = "/") -> None:
        """Act once, when the first such request (`path`: a part of it) has been done and before it is answered."""
        waiting = [act]

        def done(response: Response) -> Response:
            if (
                request.method == method
                and path in request.path
                and not request.path.startswith(base.CONTROL)
                and waiting
            ):
                waiting.pop()()
            return response

        self.app.after_request_funcs.setdefault(None, []).append(done)

    def add(self, count: int, *, seed: int = 1, plain: bool = True, **overrides: Any) -> list[Any]:
        """Invent orders; `plain`: no odd ones among them."""
        backend = self.control.backend
        invented = backend.invent(count, seed, plain)
        return backend.add_orders({**order, **overrides} for order in invented)

    def all_orders(self) -> list[dict[str, Any]]:
        return list(self.control.backend.all_orders())

    def order(self, number: object) -> dict[str, Any]:
        return self.control.backend.one_order(str(number))

    def edit(self, number: object, **patch: Any) -> None:
        """A person there changes an order."""
        self.control.backend.edit_order(str(number), patch)

    def faults(self, *rules: dict[str, Any]) -> None:
        self.control.faults.set([base.FaultRule(**rule) for rule in rules])

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing took effect in the last so many seconds."""
        effects = self.control.backend.effects.of()
        return not effects or effects[-1].at < time.time() - seconds

    def effects(self, number: object | None = None) -> Counter[str]:
        """How often each kind of effect took place."""
        return Counter(kind for effect in self.control.backend.effects.of(number) for kind in effect.kinds)

    def most_per_order(self) -> dict[str, int]:
        """Of each kind of effect, how often the order with the most of it had it."""
        return {kind: max(counts.values()) for kind, counts in self.control.backend.effects.per_order().items()}


class Shop(Remote):
    """The CloudSuite imitation."""

    def __init__(self, server: base.Server, app: Flask) -> None:
        super().__init__("cloudsuite", server, app)

    def poisons(self, number: int, act: Callable[[int, int], Any]) -> None:
        """Act with the caller's port and ours whenever somebody reads order `number`."""

        def before() -> None:
            if request.path == f"/api/order/{number}/":
                act(int(request.environ["REMOTE_PORT"]), int(request.environ["SERVER_PORT"]))

        self.app.before_request_funcs.setdefault(None, []).append(before)


class Fleet:
    """Worker and other processes of one home, and a look into their ledger."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(home),
            "C_FORCE_ROOT": "1",
            "ORDERFLEET_HOME": str(home),
            **environment,
        }
        self.settings: Settings = read_settings(self.environment)
        self.fleet = build_fleet(self.settings)
        self.ledger: Ledger = self.fleet.ledger
        migrate(self.ledger)
        self.fleet.erp.prepare()
        self.app: Celery = build_app(self.settings.broker_url or "", self.settings.systems)
        self.processes: list[ForkedProcess] = []

    def start(self, *command: str, **environment: str) -> ForkedProcess:
        """Start `orderfleet COMMAND`, or a script of the tests (a path ending in .py)."""
        log = self.home / f"{Path(command[0]).stem}-{len(self.processes)}.log"
        process = ForkedProcess(list(command), {**self.environment, **environment}, ROOT, log)
        self.processes.append(process)
        return process

    def started(self, *command: str, **environment: str) -> ForkedProcess:
        """Start a worker and wait until it shows life."""
        before = {row["name"] for row in queries.live_workers(self.ledger)}
        process = self.start(*command, **environment)
        wait_for(
            lambda: process.poll() is not None or {row["name"] for row in queries.live_workers(self.ledger)} - before,
            "a worker shows life",
        )
        return process

    def kill(self, process: ForkedProcess) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def freeze(self, process: ForkedProcess) -> None:
        """Stop a process (SIGSTOP), in a moment at which it does not hold SQLite's one write lock: nobody could write
        until it wakes up."""
        with self.ledger.transaction():
            process.send_signal(signal.SIGSTOP)
            state = Path(f"/proc/{process.pid}/stat")
            wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it stands still", 5)

    def kill_the_caller(self, port: int, server_port: int) -> int:
        """Kill the process that calls `server_port` from `port`, one of ours or a child of one; its pid.

        Both ports name the connection: another process may have a port of the same number, to somebody else."""
        inodes = {
            fields[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if (fields := line.split())[1].endswith(f":{port:04X}") and fields[2].endswith(f":{server_port:04X}")
        }
        wanted = {f"socket:[{inode}]" for inode in inodes}
        for folder in Path("/proc").glob("[0-9]*/fd"):
            with suppress(OSError):
                if any(os.readlink(link) in wanted for link in folder.iterdir()):
                    pid = int(folder.parent.name)
                    os.kill(pid, signal.SIGKILL)
                    return pid
        raise AssertionError(f"nobody calls {server_port} from {port}")

    def poll_here(self, system: str = "cloudsuite", account_name: str = "default") -> None:
        """What a worker does at beat's tick, done in this process; nothing is sent."""
        account = self.fleet.accounts[system, account_name]
        visit = self.fleet.systems[system].poll
        assert visit is not None
        visit(Visit(self.ledger, account))

    def dispatch(self) -> int:
        """Send what is due, as a worker's housekeeping does; how many orders."""
        dispatcher = Dispatcher(
            self.ledger,
            Gates(self.ledger, Bulkhead(16)),
            self.fleet.lanes,
            lambda system, run: send_chain(self.app, system, run),
            window=64,
        )
        return dispatcher.fill()

    def poll_when_it_answers(self, shop: Shop) -> None:
        """Let one poll through a shop that fails, and nothing else."""
        shop.faults()
        self.poll_here()

    def running(self, account: str) -> int:
        """Orders of an account that a worker holds."""
        return sum(row["account"] == account and row["state"] == "running" for row in self.rows_of_all())

    def settled_if_it_answers(self, count: int) -> bool:
        """`settled`, or False while the ledger is away."""
        try:
            return self.settled(count)
        except DBAPIError:
            return False

    def held_by_the_dead(self) -> list[queries.Held]:
        """Orders held by a process of ours that is no more."""
        dead = {str(process.pid) for process in self.processes if process.poll() is not None}
        with self.ledger.reading() as connection:
            held = connection.execute(text("SELECT id, fence, worker FROM orders WHERE state = 'running'"))
            return [queries.Held(*row) for row in held if row.worker.split(":")[1] in dead]

    def rows_of_all(self) -> list[dict[str, Any]]:
        """The ledger's orders, of every account."""
        return queries.listing(self.ledger, queries.Filter())

    def rows(self) -> dict[str, dict[str, Any]]:
        """The ledger's orders by external id."""
        return {row["external_id"]: row for row in self.rows_of_all()}

    def states(self) -> Counter[str]:
        return Counter(row["state"] for row in self.rows().values())

    def settled(self, count: int) -> bool:
        """Whether `count` orders are known, and none of them goes on by itself."""
        rows = self.rows()
        return len(rows) >= count and all(row["state"] in SETTLED for row in rows.values())

    def erp_rows(self, table: str) -> list[dict[str, Any]]:
        """The ERP's staging tables, as the ERP sees them."""
        with self.ledger.reading() as connection:
            return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]

    def attempts(self, external_id: object) -> list[tuple[str, str]]:
        """(step, outcome) of every try of an order."""
        order = self.rows()[str(external_id)]["id"]
        told = queries.timeline(self.ledger, order)
        return [(row["step"], row["outcome"]) for row in told if row["kind"] == "attempt"]

    def why(self) -> str:
        """What a failing test wants to see."""
        logs = sorted(self.home.glob("*.log"))
        stuck = [
            {key: str(row[key])[:200] for key in ("external_id", "state", "step", "awaits", "error")}
            for row in self.rows().values()
            if row["state"] not in SETTLED
        ][:5]
        tails = "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs[-3:])
        return f"{dict(self.states())}\n{json.dumps(stuck, indent=1)}\n{tails}"

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(process)
        self.fleet.erp.close()
        self.ledger.close()
        self.app.close()


@contextmanager
def a_remote(system: str, account: str = "default", **options: Any) -> Iterator[Remote]:
    """An imitation on a free port; `options` are its knobs."""
    module = imitation(system)
    app = module.create_app(module.Options(**options))
    server = base.serve(app)
    try:
        yield Remote(system, server, app, account)
    finally:
        server.stop()


@contextmanager
def a_web(settings: Settings) -> Iterator[str]:
    """The address of the fleet's web server, in this process."""
    app = create_app(settings)
    server = base.serve(app)
    try:
        yield server.url
    finally:
        server.stop()
        app.extensions["bell"].stop()
        app.extensions["ledger"].close()


@contextmanager
def a_fleet(*remotes: Remote, home: Path, broker: str, database: str, **environment: str) -> Iterator[Fleet]:
    """A fleet for these imitations, whose ERP answers at once, with its web server where they send webhooks; no other
    process runs yet."""
    settings = {name: value for remote in remotes for name, value in remote.settings().items()}
    fleet = Fleet(home, {**settings, "BROKER_URL": broker, "DATABASE_URL": database, **environment})
    try:
        with an_erp(fleet.settings.erp_url, ship_after_seconds=0.2), a_web(fleet.settings) as web:
            for remote in remotes:
                if hasattr(imitation(remote.system), "point_at"):
                    remote.point_at(web)
            yield fleet
    finally:
        fleet.close()


@contextmanager
def a_shop(**options: Any) -> Iterator[Shop]:
    """A CloudSuite imitation on a free port."""
    app = cloudsuite.create_app(cloudsuite.Options(**options))
    server = base.serve(app)
    try:
        yield Shop(server, app)
    finally:
        server.stop()


@contextmanager
def an_erp(url: str, **options: Any) -> Iterator[SandboxErp]:
    """The ERP's own job at work on the staging tables."""
    stop = threading.Event()
    erp = SandboxErp(url, **options)

    def work() -> None:
        while not stop.wait(0.1):
            erp.step()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield erp
    finally:
        stop.set()
        thread.join(10)
        erp.close()


def shop_settings(shop: Shop) -> dict[str, str]:
    """The settings that point a fleet at the imitation."""
    return shop.settings()
