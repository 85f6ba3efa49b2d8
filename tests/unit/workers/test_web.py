"""Health, readiness and metrics, on real databases and a real broker; and the server that serves them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ledger import intake, remotes, upkeep
from ledger.connection import Ledger
from orders.arrival import Arrival
from orders.outcomes import Planned
from tests.services import PrivateValkey
from workers.embedded import free_port
from workers.settings import read_settings
from workers.web import Check, create_app, readyz

ROOT = Path(__file__).resolve().parents[3]
NOBODY = "redis://127.0.0.1:1/0"


ClientOf = Callable[..., FlaskClient]


@pytest.fixture
def client_of() -> Iterator[ClientOf]:
    """Makes clients of applications with a database and, unless it is None, a broker."""
    apps: list[Flask] = []

    def make(database: str, broker: str | None = NOBODY, **options: Any) -> FlaskClient:
        environment = {"DATABASE_URL": database} | ({} if broker is None else {"BROKER_URL": broker})
        apps.append(create_app(read_settings(environment), **options))
        return apps[-1].test_client()

    yield make
    for app in apps:
        app.extensions["ledger"].close()


def told(answer: TestResponse) -> dict[str, str]:
    """What an answer of /readyz says of each check."""
    assert answer.json is not None
    assert answer.json["status"] == ("ok" if answer.status_code == 200 else "not ready")
    checks: dict[str, str] = answer.json["checks"]
    return checks


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def metrics(client: FlaskClient) -> dict[str, float]:
    lines = (line for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_alive_needs_nothing(client_of):
    answer = client_of("postgresql://nobody@127.0.0.1:1/none").get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_ready_with_database_and_broker(client_of, ledger_url, valkey):
    answer = client_of(ledger_url, valkey.url).get("/readyz")
    assert (answer.status_code, answer.json) == (
        200,
        {"status": "ok", "checks": {"database": "ok", "broker": "ok"}},
    )


def test_ready_again_when_the_broker_is_back(client_of, ledger_url, valkey):
    client = client_of(ledger_url, valkey.url)
    valkey.stop()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert told(answer) == {
        "database": "ok",
        "broker": "cannot be used (BrokerAway); this process's log says why",
    }
    valkey.start()
    assert client.get("/readyz").status_code == 200


def test_no_secret_is_told_to_strangers(client_of):
    client = client_of("postgresql://somebody:hidden@127.0.0.1:1/none", "redis://:hidden@127.0.0.1:1/0")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert told(answer)["database"] == "cannot be used (OperationalError); this process's log says why"
    for secret in ("hidden", "somebody", "127.0.0.1"):
        assert secret not in answer.text


def test_not_ready_without_a_broker(client_of, ledger_url):
    answer = client_of(ledger_url, None).get("/readyz")
    assert (answer.status_code, told(answer)["broker"]) == (503, "BROKER_URL is not set")


def test_not_ready_before_the_migrations(client_of, empty_database_url, valkey):
    answer = client_of(empty_database_url, valkey.url).get("/readyz")
    assert answer.status_code == 503
    assert "run `orderfleet migrate`" in told(answer)["database"]


def test_a_database_that_hangs_is_waited_for_two_seconds(client_of, valkey):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        client = client_of(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/none", valkey.url)
        began = time.monotonic()
        answer = client.get("/readyz")
        assert time.monotonic() - began < 4
        assert told(answer) == {"database": "does not answer within 2 s", "broker": "ok"}


def test_a_check_that_hangs_is_not_begun_twice():
    hanging, looks = threading.Event(), []

    def look() -> str | None:
        looks.append(1)
        hanging.wait()
        return None

    check = Check("database", look)
    first = check.begin()
    second = check.begin()
    hanging.set()
    assert second is first
    assert first.result() is None
    with Flask("test").app_context():
        assert readyz([check])[1] == 200
    assert len(looks) == 2


def test_metrics_tell_the_ledger(client_of, ledger, ledger_url):
    arrivals = [
        Arrival("default", str(number), f"row:{number}", "row", "{}", (Planned("acme.go"),), None) for number in (1, 2)
    ]
    intake.take_in(ledger, "acme", arrivals)
    upkeep.beat(ledger, "worker:1")
    remotes.close_gate(ledger, "acme:default", 60.0, "503")
    with ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE orders SET state = 'done', wake_at = NULL WHERE external_id = '2'")
    seen = metrics(client_of(ledger_url))
    assert seen['orderfleet_orders{state="ready",system="acme"}'] == 1
    assert seen['orderfleet_orders{state="finished",system="acme"}'] == 1
    assert seen["orderfleet_live_workers"] == 1
    assert seen['orderfleet_lane_closed{lane="acme:default"}'] == 1
    assert 0 <= seen["orderfleet_oldest_waiting_seconds"] < 60
    assert seen["orderfleet_ledger_up"] == 1
    assert seen["process_cpu_seconds_total"] > 0


def test_metrics_survive_a_ledger_that_is_away(client_of):
    seen = metrics(client_of("postgresql://nobody@127.0.0.1:1/none"))
    assert seen["orderfleet_ledger_up"] == 0
    assert seen["process_cpu_seconds_total"] > 0


def test_receivers_are_served_beside(client_of, ledger_url):
    receiver = Blueprint("acme", __name__, url_prefix="/webhooks/acme")
    receiver.add_url_rule("/<account>", "receive", lambda account: {"account": account}, methods=["POST"])
    client = client_of(ledger_url, receivers=[receiver])
    assert client.post("/webhooks/acme/north").json == {"account": "north"}
    assert client.get("/healthz").status_code == 200


# -- the process ------------------------------------------------------------------------------------------------------

SERVE = (
    "from workers.settings import read_settings; from workers.web import run_webhooks; run_webhooks(read_settings())"
)


@pytest.fixture
def served(ledger_url: str, valkey: PrivateValkey, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The real server process, and its URL."""
    bind = f"127.0.0.1:{free_port()}"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "DATABASE_URL": ledger_url,
        "BROKER_URL": valkey.url,
        "WEBHOOKS_BIND": bind,
    }
    with subprocess.Popen([sys.executable, "-c", SERVE], env=environment, cwd=tmp_path) as process:
        until = time.monotonic() + 30
        while not _answers(f"http://{bind}/healthz"):
            assert time.monotonic() < until, "the server did not come up"
            assert process.poll() is None
        yield process, f"http://{bind}"
        process.kill()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.ConnectionError:
        time.sleep(0.05)
        return False


def test_the_server_serves_and_stops(served, tmp_path):
    process, url = served
    assert requests.get(f"{url}/readyz", timeout=5).json()["status"] == "ok"
    assert "orderfleet_ledger_up 1.0" in requests.get(f"{url}/metrics", timeout=5).text
    sockets = [path for path in tmp_path.rglob("*") if path.is_socket()]
    assert not sockets, "gunicorn opened its control socket"
    process.send_signal(signal.SIGTERM)
    assert process.wait(8) == 0
