"""What `orderfleet up` decides before anything starts: which settings count, which files go, which ports are used."""

import fcntl
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from workers.settings import Bind
from workers.systems import NAMES
from workers.up import CannotStart, one_at_a_time, operator_command, real_plan, run_up, sandbox_plan

FREE = {"WEBHOOKS_BIND": "127.0.0.1:0", "FLOWER_BIND": "127.0.0.1:0"}
REAL = {
    "DATABASE_URL": "postgresql://real/real",
    "BROKER_URL": "redis://real",
    "ERP_URL": "mysql://real/real",
    "CLOUDSUITE_URL": "https://real.example",
    "CLOUDSUITE_TOKEN": "real",
    "CLOUDSUITE_ACCOUNTS": "real",
    "CLOUDSUITE_REAL_URL": "https://real.example",
}


@pytest.fixture
def taken() -> Iterator[Bind]:
    """An address that somebody listens on; the next port may be free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield Bind("127.0.0.1", other.getsockname()[1])


def test_a_sandbox_uses_nothing_real(tmp_path):
    plan = sandbox_plan(tmp_path, {**FREE, **REAL, "WORKER_CONCURRENCY": "3", "PATH": "/bin"})
    assert plan.ignored == tuple(sorted(REAL))
    assert not set(REAL.values()) & set(plan.environment.values())
    assert not {"DATABASE_URL", "BROKER_URL", "ERP_URL", "CLOUDSUITE_ACCOUNTS"} & set(plan.environment)
    assert plan.settings.database_url == plan.settings.erp_url == f"sqlite:///{tmp_path}/ledger.db"
    assert plan.settings.broker_url is None
    ports = [urlsplit(account.url).port for account in plan.settings.accounts]
    assert ports == list((plan.imitations or {}).values())
    assert [account.system for account in plan.settings.accounts] == list(NAMES)
    assert (plan.settings.concurrency, plan.environment["PATH"]) == (3, "/bin")
    assert f"not used with --sandbox, though set: {', '.join(sorted(REAL))}" in plan.notes


def test_a_sandbox_forgets_only_its_own_files(tmp_path):
    home = tmp_path / "sandbox"
    (home / "broker" / "appendonlydir").mkdir(parents=True)
    (home / "logs").mkdir()
    ours = [home / name for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "broker/appendonlydir/a.aof")]
    others = [tmp_path / "ledger.db", home / "notes.txt", home / "logs" / "worker.log"]
    for path in (*ours, *others):
        path.write_text("")
    sandbox_plan(home, FREE)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_a_sandbox_behind_a_link_is_refused(tmp_path, capsys):
    real = tmp_path / "real"
    real.mkdir()
    (real / "ledger.db").write_text("precious")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "sandbox").symlink_to(real)
    assert run_up(None, {**FREE, "ORDERFLEET_HOME": str(tmp_path / "home")}, sandbox=True) == 1
    assert "is a link" in capsys.readouterr().err
    assert (real / "ledger.db").read_text() == "precious"
    assert [path.name for path in real.iterdir()] == ["ledger.db"]


def test_a_taken_port_moves_a_sandbox_but_stops_a_fleet(tmp_path, taken):
    environment = {"ORDERFLEET_HOME": str(tmp_path), "FLOWER_BIND": "127.0.0.1:0", "WEBHOOKS_BIND": str(taken)}
    plan = sandbox_plan(tmp_path, environment)
    assert taken.port < plan.settings.webhooks.port < taken.port + 50
    assert plan.environment["WEBHOOKS_BIND"] == str(plan.settings.webhooks)
    with pytest.raises(CannotStart, match=f"WEBHOOKS_BIND: {taken} is taken by another program"):
        real_plan(None, environment)


def test_one_address_for_two_servers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    environment = {
        "ORDERFLEET_HOME": str(tmp_path),
        "WEBHOOKS_BIND": f"127.0.0.1:{port}",
        "FLOWER_BIND": f"127.0.0.1:{port}",
    }
    with pytest.raises(CannotStart, match="FLOWER_BIND: it is the same address"):
        real_plan(None, environment)
    plan = sandbox_plan(tmp_path, environment)
    assert plan.settings.webhooks != plan.settings.flower


def test_an_address_of_another_machine(tmp_path):
    with pytest.raises(CannotStart, match=r"WEBHOOKS_BIND: nothing can listen on 203\.0\.113\.1:8000: Cannot assign"):
        real_plan(None, {"ORDERFLEET_HOME": str(tmp_path), "WEBHOOKS_BIND": "203.0.113.1:8000"})


def test_a_fleet_keeps_its_settings(tmp_path):
    environment = {**FREE, "ORDERFLEET_HOME": str(tmp_path), "DATABASE_URL": "postgresql://here/orders"}
    plan = real_plan(None, environment)
    assert plan.environment["DATABASE_URL"] == "postgresql://here/orders"
    assert plan.environment["WEBHOOKS_BIND"] == str(plan.settings.webhooks)
    assert plan.settings.webhooks.port != 0
    assert plan.imitations is None


def test_a_home_is_for_one(tmp_path):
    refusal = pytest.raises(CannotStart, match=r"another `orderfleet up` \(process \d+\)")
    began = time.monotonic()
    with one_at_a_time(tmp_path), refusal, one_at_a_time(tmp_path):
        pytest.fail("two hold one lock")
    assert time.monotonic() - began < 5, "it waited for one that lives"
    with one_at_a_time(tmp_path):
        assert (tmp_path / "up.lock").exists()


def test_the_guard_of_one_that_was_killed_is_waited_for(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    guard = (tmp_path / "up.lock").open("w+")
    guard.write(str(ended.pid))
    guard.flush()
    fcntl.flock(guard, fcntl.LOCK_EX)
    with pytest.raises(CannotStart), one_at_a_time(tmp_path, patience=0.2):
        pytest.fail("the guard still holds it")
    threading.Timer(0.3, guard.close).start()
    with one_at_a_time(tmp_path):
        assert guard.closed


def test_the_command_for_another_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/bin")
    home = tmp_path / ".orderfleet"
    plan = real_plan(None, {**FREE, "ORDERFLEET_HOME": str(home)})
    program = str(tmp_path / ".venv" / "bin" / "orderfleet")
    assert operator_command(plan, program, tmp_path) == ".venv/bin/orderfleet"
    assert operator_command(plan, "/somewhere/cli.py", tmp_path) == "orderfleet"
    assert operator_command(plan, "cli.py", tmp_path / "elsewhere") == f"ORDERFLEET_HOME={home} orderfleet"
    sandbox = replace(sandbox_plan(home / "sandbox", {**FREE, **REAL}), imitations={})
    assert operator_command(sandbox, "cli.py", tmp_path) == "ORDERFLEET_HOME=.orderfleet/sandbox orderfleet"
