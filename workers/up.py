"""`orderfleet up`: everything on one machine, as children of this process, which only starts, shows and stops them.

With `--sandbox` the fleet meets imitations of the remote systems, in a home of its own, and no setting of a real
system, ledger, broker or ERP reaches it."""

import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from erp.port import open_erp
from ledger.connection import Ledger
from ledger.migrate import migrate
from orders.errors import StepError
from workers.embedded import EmbeddedBroker, NotAnswering, free_port, new_broker
from workers.live import Scene, View, Watch, open_view
from workers.sandbox import fleet_settings
from workers.settings import SANDBOX_FILE, Bind, Settings, names_a_place, read_settings
from workers.supervisor import Command, Supervisor, last_words, rotate
from workers.systems import SYSTEMS

MOST_WORKERS = 4
FLEET_STOP_SECONDS = 6.0
"""How long steps and requests that are under way may take at the end; what is cut off then, its lease gives back."""
BROKER_STOP_SECONDS = 3.0
NEXT_PORTS = 50
"""How many ports after a taken one the sandbox tries."""
TURN = 0.1

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST = ("sandbox", "broker")
"""Children that the others need to finish their work."""


class CannotStart(Exception):
    """Why nothing was started, and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run: `settings` with the addresses that will be used, the children's `environment`, the imitations'
    ports by system (None: no sandbox), `notes` for people, and the variables that were ignored."""

    settings: Settings
    environment: Mapping[str, str]
    imitations: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def run_up(settings: Settings | None, environment: Mapping[str, str], *, sandbox: bool) -> int:
    """Run everything until told to stop; the exit code. Without `settings` they are read from `environment`.

    Raises `WrongSettings`."""
    console = Console(highlight=False)
    try:
        with _home(settings, environment, sandbox) as (home, lock):
            plan = sandbox_plan(home, environment) if sandbox else real_plan(settings, environment)
            return Up(plan, lock, console).run()
    except CannotStart as reason:
        print(f"orderfleet up: {reason}", file=sys.stderr)
        return 1


# -- before anything starts -------------------------------------------------------------------------------------------


def real_plan(settings: Settings | None, environment: Mapping[str, str]) -> Plan:
    """The fleet as it is set up. Raises `CannotStart` if one of its addresses is taken."""
    settings = settings or read_settings(environment)
    settings = replace(
        settings,
        webhooks=_chosen(settings.webhooks, "WEBHOOKS_BIND"),
        flower=_chosen(settings.flower, "FLOWER_BIND"),
    )
    if settings.webhooks == settings.flower:
        raise CannotStart(f"FLOWER_BIND: it is the same address as WEBHOOKS_BIND, {settings.flower}")
    notes = [f"data and logs are in {settings.home}"]
    if not settings.accounts:
        names = ", ".join(f"{system.upper()}_URL" for system in SYSTEMS)
        notes.append(f"no system is switched on: set {names} (and what goes with it), or try `orderfleet up --sandbox`")
    return Plan(settings, _own(settings, environment), notes=tuple(notes))


def sandbox_plan(home: Path, environment: Mapping[str, str]) -> Plan:
    """A fleet for the imitations, with a fresh ledger in `home`. Raises `CannotStart` without free ports."""
    ignored = tuple(sorted(name for name, value in environment.items() if value.strip() and names_a_place(name)))
    kept = {name: value for name, value in environment.items() if not names_a_place(name)}
    ports = {system: free_port() for system in SYSTEMS}
    (home / SANDBOX_FILE).unlink(missing_ok=True)  # of one that was killed
    settings = read_settings({**fleet_settings(ports), **kept, "ORDERFLEET_HOME": str(home)})
    webhooks = _next_free(settings.webhooks, "WEBHOOKS_BIND")
    flower = _next_free(settings.flower, "FLOWER_BIND", besides=webhooks)
    settings = replace(settings, webhooks=webhooks, flower=flower)
    _forget_last_time(home)
    notes = [f"sandbox: the imitations forget their orders when they stop, so the ledger in {home} begins anew, too"]
    if ignored:
        notes.append(f"not used with --sandbox, though set: {', '.join(ignored)}")
    return Plan(
        settings,
        _own(settings, {**fleet_settings(ports), **kept}),
        imitations=ports,
        notes=tuple(notes),
        ignored=ignored,
    )


def _own(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        **environment,
        "ORDERFLEET_HOME": str(settings.home),
        "WEBHOOKS_BIND": str(settings.webhooks),
        "FLOWER_BIND": str(settings.flower),
        "PYTHONUNBUFFERED": "1",
    }


def _forget_last_time(home: Path) -> None:
    """Remove what an earlier sandbox left in its own home: only files of ours, by name."""
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (home / name).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(home / "broker")


@contextmanager
def _home(settings: Settings | None, environment: Mapping[str, str], sandbox: bool) -> Iterator[tuple[Path, int]]:
    """The home folder, and the lock on it. Raises `CannotStart`."""
    if sandbox:
        named = environment.get("ORDERFLEET_HOME", "").strip() or ".orderfleet"
        home = Path(named).absolute() / "sandbox"
    else:
        home = (settings or read_settings(environment)).home
    if sandbox and home.is_symlink():
        raise CannotStart(f"{home} is a link: the sandbox makes and removes files only in a folder of its own")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_at_a_time(home) as lock:
            yield home, lock
    except PermissionError as error:
        raise CannotStart(f"ORDERFLEET_HOME: {home} cannot be written: {error.strerror}") from None


@contextmanager
def one_at_a_time(home: Path, *, patience: float = 10.0) -> Iterator[int]:
    """Hold this home's lock; its descriptor. Raises `CannotStart` when another `up` runs here.

    An `up` that was killed leaves the lock to its guard until the last of its children has gone: that is waited for."""
    with (home / "up.lock").open("a+") as file:
        until = time.monotonic() + patience
        while not _lock(file.fileno()):
            file.seek(0)
            holder = file.read().strip()
            if _lives(holder) or time.monotonic() > until:
                raise CannotStart(f"another `orderfleet up` (process {holder}) runs in {home}")
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


# -- addresses --------------------------------------------------------------------------------------------------------


def _chosen(bind: Bind, name: str) -> Bind:
    """The address, with a free port for port 0. Raises `CannotStart` if it cannot be listened on."""
    if bind.port == 0:
        return replace(bind, port=free_port())
    problem = _problem(bind)
    if problem is None:
        return bind
    if problem.errno == errno.EADDRINUSE:
        raise CannotStart(f"{name}: {bind} is taken by another program: set {name} to another address")
    raise CannotStart(f"{name}: nothing can listen on {bind}: {problem.strerror}")


def _next_free(bind: Bind, name: str, besides: Bind | None = None) -> Bind:
    if bind.port == 0:
        return _chosen(bind, name)
    for port in range(bind.port, min(bind.port + NEXT_PORTS, 65536)):
        candidate = replace(bind, port=port)
        if candidate != besides and _problem(candidate) is None:
            return candidate
    raise CannotStart(f"{name}: no port from {bind} on is free: set {name} to another address")


def _problem(bind: Bind) -> OSError | None:
    """Why nothing could listen there; None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


# -- running ----------------------------------------------------------------------------------------------------------


class Up:
    """One run of everything."""

    def __init__(self, plan: Plan, lock: int, console: Console) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._environment = dict(plan.environment)
        self._view: View = open_view(_scene(plan), console)
        self._ledger = Ledger(plan.settings.database_url, pool_size=2)
        self._watch = Watch(self._ledger)
        self._supervisor = Supervisor(self._view.say, keep_open=[lock])
        self._broker: EmbeddedBroker | None = None
        self._signals = 0
        self._sandbox_file = plan.settings.home / SANDBOX_FILE

    def run(self) -> int:
        """Start, show, stop; the exit code. Raises `CannotStart`."""
        for number in _STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                signal.signal(number, self._told_to_stop)
        try:
            with self._view:
                self._start()
                self._serve()
                self._view.say("stopping: work under way is finished first; Ctrl-C again ends it at once")
                self._stop()
        except KeyboardInterrupt:
            return 130
        finally:
            self._clean_up()
        return 0

    def _told_to_stop(self, number: int, frame: Any) -> None:
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt

    def _start(self) -> None:
        for note in self._plan.notes:
            self._view.say(note)
        if self._plan.imitations is not None:
            self._sandbox_file.write_text(json.dumps(fleet_settings(self._plan.imitations)))
        if self._settings.broker_url is None:
            self._start_broker()
        self._prepare()
        for name, arguments in self._commands():
            if self._signals == 0:
                self._start_child(name, arguments)
        self._watch.start()

    def _start_broker(self) -> None:
        self._broker = broker = new_broker(self._settings.home)
        broker.write_files()
        self._environment["BROKER_URL"] = broker.url
        log = self._start_child("broker", broker.arguments)
        pid = self._supervisor.pid("broker")
        try:
            broker.wait(pid, lambda: self._signals == 0 and self._still("broker", pid))
        except NotAnswering as error:
            if self._signals == 0:
                raise CannotStart(f"{error}: {last_words(log)} ({log})") from None

    def _still(self, name: str, pid: int | None) -> bool:
        self._supervisor.tend()
        return self._supervisor.pid(name) == pid

    def _prepare(self) -> None:
        """Bring the tables of ledger and ERP staging up to date."""
        try:
            migrate(self._ledger)
            erp = open_erp(self._settings.erp_url)
            try:
                erp.prepare()
            finally:
                erp.close()
        except SQLAlchemyError as error:
            raise CannotStart(f"DATABASE_URL: the ledger does not answer: {error.__cause__ or error}") from None
        except (StepError, ValueError) as error:
            raise CannotStart(f"ERP_URL: {error}") from None

    def _commands(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name and arguments of every child but the broker, in the order of their start."""
        cli = (sys.executable, "-m", "workers")
        if self._plan.imitations is not None:
            ports = [f"--port={system}={port}" for system, port in self._plan.imitations.items()]
            web = f"--web=http://{self._settings.webhooks}"
            yield "sandbox", (*cli, "sandbox", *ports, f"--erp-url={self._settings.erp_url}", web)
        for name in _worker_names(self._settings):
            yield name, (*cli, "worker")
        for name in ("beat", "webhooks", "flower"):
            yield name, (*cli, name)

    def _start_child(self, name: str, arguments: tuple[str, ...]) -> Path:
        log = self._settings.home / "logs" / f"{name}.log"
        rotate(log)
        self._supervisor.start(Command(name, arguments, self._environment, log))
        return log

    def _serve(self) -> None:
        while self._signals == 0:
            self._supervisor.tend()
            self._view.show(self._watch.latest, self._supervisor.statuses())
            time.sleep(TURN)

    def _stop(self) -> None:
        names = [status.name for status in self._supervisor.statuses()]
        late = self._supervisor.stop([name for name in names if name not in _LAST], seconds=FLEET_STOP_SECONDS)
        late += self._supervisor.stop(seconds=BROKER_STOP_SECONDS)
        if late:
            self._view.say(f"ended, though not finished: {', '.join(late)}; what they held goes on at the next start")

    def _clean_up(self) -> None:
        """Nothing is left behind, however this ends; on the way out of a failed start, too."""
        self._signals = max(self._signals, 1)
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)
        self._supervisor.kill()
        self._supervisor.close()
        if self._broker is not None:
            self._broker.remove_url()
        if self._plan.imitations is not None:
            self._sandbox_file.unlink(missing_ok=True)
        self._watch.stop()
        self._ledger.close()


def _worker_names(settings: Settings) -> list[str]:
    """One worker beside SQLite, which has one writer; else one a core, up to a few."""
    number = 1 if settings.database_url.startswith("sqlite") else min(os.cpu_count() or 1, MOST_WORKERS)
    return ["worker"] if number == 1 else [f"worker-{index + 1}" for index in range(number)]


# -- what people read -------------------------------------------------------------------------------------------------


def _scene(plan: Plan) -> Scene:
    addresses = {"webhooks": f"http://{plan.settings.webhooks}", "flower": f"http://{plan.settings.flower}"}
    if plan.imitations is not None:
        listed = (f"{system} http://127.0.0.1:{port}" for system, port in plan.imitations.items())
        addresses["sandbox"] = ", ".join(listed)
    return Scene(
        title="orderfleet" if plan.imitations is None else "orderfleet with imitations of the remote systems",
        addresses=addresses,
        command=operator_command(plan, sys.argv[0], Path.cwd()),
    )


def operator_command(plan: Plan, program: str, folder: Path) -> str:
    """How to call `orderfleet` for this home in another terminal in `folder`, where the same variables are set.

    A sandbox's home knows its own settings: those of real systems, set or not, do not count there."""
    home = plan.settings.home
    shown = home.relative_to(folder) if home.is_relative_to(folder) else home
    words = []
    if home != folder / ".orderfleet":
        words.append(f"ORDERFLEET_HOME={shlex.quote(str(shown))}")
    return " ".join([*words, _program(program, folder)])


def _program(program: str, folder: Path) -> str:
    path = Path(program).absolute()
    if path.name != "orderfleet" or shutil.which("orderfleet") == str(path):
        return "orderfleet"
    return shlex.quote(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
