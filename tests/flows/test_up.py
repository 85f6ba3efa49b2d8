"""`orderfleet up --sandbox` as a newcomer starts it: real processes, stopped and killed in every way."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from ledger import queries
from ledger.connection import Ledger
from orders.states import State
from tests.flows.harness import ROOT, wait_for
from workers.embedded import free_port
from workers.settings import read_settings, with_broker
from workers.systems import NAMES

CHILDREN = {"broker", "sandbox", "worker", "beat", "webhooks", "flower"}
STEPS = {"cloudsuite.fetch", "erp.order", "cloudsuite.state", "cloudsuite.erp_order_number", "cloudsuite.lines"}
STOPPED = r"(\w+:\w+) stopped at (\S+): (.+); then: (.+)"
PASSWORD = ("operator", "for-this-test")


class Running:
    """One `orderfleet up`, what it printed, and a look at its processes and ledger."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.home = folder / "home"
        self.output = folder / "up.out"
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "ORDERFLEET_HOME": str(self.home),
            "WEBHOOKS_BIND": f"127.0.0.1:{free_port()}",
            "FLOWER_BIND": f"127.0.0.1:{free_port()}",
            "FLOWER_BASIC_AUTH": ":".join(PASSWORD),
            **environment,
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers", "up", *arguments],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def address(self, name: str) -> str:
        """An address that it printed."""
        found = wait_for(lambda: re.search(rf"{name}: (http://\S+)", self.text), lambda: f"{name}\n{self.text}")
        return str(found[1])

    def family(self) -> dict[int, int]:
        """Process id and parent of everything that was started: by working folder, so that orphans count, too
        (Valkey writes over its environment)."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = (entry / "cwd").readlink().is_relative_to(self.folder)
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if ours and status[0] != "Z":
                found[int(entry.name)] = int(status[1])
        return found

    def child(self, command: str) -> int | None:
        """The process id of the child that runs `orderfleet COMMAND`."""
        for pid, parent in self.family().items():
            words = _words(pid)
            if parent == self.process.pid and command in words:
                return pid
        return None

    def states(self) -> Counter[str]:
        database = self.home / "sandbox" / "ledger.db"
        if not database.exists():
            return Counter()
        ledger = Ledger(f"sqlite:///{database}")
        try:
            return Counter(row["state"] for row in queries.listing(ledger, queries.Filter()))
        finally:
            ledger.close()

    def works(self) -> None:
        """Wait until orders are done."""
        wait_for(lambda: "finished a second" in self.text, lambda: f"it says how things stand\n{self.text}")
        wait_for(lambda: self.states()[State.DONE] >= 3, lambda: f"orders are done\n{self.text}")

    def end(self) -> None:
        """Whatever happened: nothing is left."""
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `orderfleet up ARGUMENTS`; whatever it leaves behind is ended."""
    started: list[Running] = []

    def begin(*arguments: str, **environment: str) -> Running:
        started.append(Running(tmp_path / "run", *arguments, **environment))
        return started[-1]

    yield begin
    for running in started:
        running.end()


def tasks_of(flower: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{flower}/api/tasks", params={"limit": 2000}, auth=PASSWORD, timeout=10)
    answer.raise_for_status()
    return list(answer.json().values())


def finishing(webhooks: str) -> set[str]:
    """The systems of which orders have come to their end."""
    text = requests.get(f"{webhooks}/metrics", timeout=5).text
    return set(re.findall(r'orderfleet_orders\{state="finished",system="(\w+)"\} [1-9]', text))


def ready(webhooks: str) -> bool:
    """Whether the web server answers that it is; it starts beside everything else."""
    try:
        return requests.get(f"{webhooks}/readyz", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def test_a_newcomer_sees_orders_flow(start):
    real = {"DATABASE_URL": "postgresql://real@127.0.0.1:1/real", "CLOUDSUITE_ACCOUNTS": "real"}
    running = start("--sandbox", **real)
    running.works()
    assert "not used with --sandbox, though set: CLOUDSUITE_ACCOUNTS, DATABASE_URL" in running.text
    wait_for(lambda: running.states()[State.PARKED], lambda: f"an odd order stops\n{running.text}")
    told = wait_for(lambda: re.search(STOPPED, running.text), lambda: str(running.text))
    assert told[4] == f"ORDERFLEET_HOME=home/sandbox orderfleet replay {told[1]}"

    flower = running.address("flower")
    seen = wait_for(lambda: (tasks := tasks_of(flower)) and _succeeded(tasks) >= STEPS and tasks, "Flower shows steps")
    assert len({task["uuid"] for task in seen}) == len(seen)
    wait_for(
        lambda: [task for task in tasks_of(flower) if task["state"] == "RETRY" and "Injected" in task["exception"]],
        "Flower shows a retry with its reason",
    )

    webhooks = running.address("webhooks")
    assert requests.get(f"{webhooks}/readyz", timeout=5).json()["checks"] == {"database": "ok", "broker": "ok"}
    wait_for(lambda: finishing(webhooks) == set(NAMES), lambda: f"only {finishing(webhooks)}\n{running.text}")

    settings = with_broker(read_settings({"ORDERFLEET_HOME": str(running.home / "sandbox")}))
    with redis.Redis.from_url(settings.broker_url or "") as client:
        assert client.ping()

    members = running.family()
    assert len(members) >= len(CHILDREN) + 3, "the children, ourselves, the guard, and gunicorn's own child"
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert running.family() == {}
    assert "ended, though not finished" not in running.text
    assert not (running.home / "sandbox" / "broker.url").exists()
    assert {path.name for path in running.home.iterdir()} == {"sandbox"}


def _succeeded(tasks: list[dict[str, Any]]) -> set[str]:
    return {task["name"] for task in tasks if task["state"] == "SUCCESS"}


def test_a_killed_worker_is_started_again(start):
    running = start("--sandbox")
    running.works()
    worker = running.child("worker")
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: running.child("worker") not in (None, worker), lambda: f"another worker\n{running.text}")
    assert f"worker (pid {worker}) was killed by SIGKILL" in running.text
    done = running.states()[State.DONE]
    wait_for(lambda: running.states()[State.DONE] > done + 3, lambda: f"orders go on\n{running.text}")


def test_a_killed_broker_keeps_its_address(start):
    running = start("--sandbox")
    running.works()
    settings = with_broker(read_settings({"ORDERFLEET_HOME": str(running.home / "sandbox")}))
    with redis.Redis.from_url(settings.broker_url or "") as client:
        first = client.info("server")["process_id"]
    os.kill(first, signal.SIGKILL)
    done = running.states()[State.DONE]
    wait_for(lambda: running.states()[State.DONE] > done + 3, lambda: f"orders go on\n{running.text}")
    with redis.Redis.from_url(settings.broker_url or "") as client:
        assert client.info("server")["process_id"] != first


def test_nothing_survives_a_killed_parent(start):
    running = start("--sandbox")
    running.works()
    running.process.kill()
    running.process.wait(10)
    wait_for(lambda: not running.family(), lambda: f"nothing is left: {running.family()}", seconds=8)


def test_a_second_one_on_the_same_home_refuses(start):
    first = start("--sandbox")
    first.works()
    before = first.family()
    second = subprocess.run(
        [sys.executable, "-m", "workers", "up", "--sandbox"],
        env=first.environment,
        cwd=first.home.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert f"another `orderfleet up` (process {first.process.pid}) runs in {first.home}/sandbox" in second.stderr
    assert first.family() == before
    done = first.states()[State.DONE]
    wait_for(lambda: first.states()[State.DONE] > done, lambda: f"the first goes on\n{first.text}")


def test_ctrl_c_twice_ends_it_at_once(start):
    running = start("--sandbox")
    running.works()
    worker = running.child("worker")
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)  # it would never finish
    running.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in running.text, "it says what a second Ctrl-C does")
    began = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(5) == 130
    assert time.monotonic() - began < 3
    assert running.family() == {}


def test_without_a_system_it_says_what_to_set(start):
    running = start()
    wait_for(lambda: "no orders yet" in running.text, lambda: str(running.text))
    assert "no system is switched on: set CLOUDSUITE_URL" in running.text
    wait_for(lambda: ready(running.address("webhooks")), lambda: str(running.text))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert running.family() == {}
    assert (running.home / "ledger.db").exists()


def test_a_taken_port_is_named_before_anything_starts(start):
    taken = start()
    wait_for(lambda: "no orders yet" in taken.text, lambda: str(taken.text))
    bind = taken.environment["FLOWER_BIND"]
    running = subprocess.run(
        [sys.executable, "-m", "workers", "up"],
        env={**taken.environment, "ORDERFLEET_HOME": str(taken.home / "other"), "WEBHOOKS_BIND": "127.0.0.1:0"},
        cwd=taken.home.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert running.returncode == 1
    assert f"FLOWER_BIND: {bind} is taken by another program: set FLOWER_BIND to another address" in running.stderr
    assert {path.name for path in (taken.home / "other").iterdir()} == {"up.lock"}
