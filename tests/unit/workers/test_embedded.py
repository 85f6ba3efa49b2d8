"""The embedded broker: loopback only, not without its password, and nothing lost over a restart."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from workers.embedded import EmbeddedBroker, NotAnswering, free_port, new_broker, write_private
from workers.settings import WrongSettings, read_settings, with_broker
from workers.supervisor import Command, Supervisor


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(lambda said: None)
    yield supervisor
    supervisor.kill()
    supervisor.close()


def start(supervisor: Supervisor, broker: EmbeddedBroker) -> None:
    broker.write_files()
    environment = {"PATH": os.environ["PATH"]}
    supervisor.start(Command("broker", broker.arguments, environment, broker.home / "broker.log"))
    broker.wait(supervisor.pid("broker"), lambda: True)


def test_it_keeps_its_queues_over_a_crash(supervisor, tmp_path):
    broker = new_broker(tmp_path / 'a "quoted" home')
    start(supervisor, broker)
    with redis.Redis.from_url(broker.url) as client:
        client.rpush("cloudsuite", "message")
        client.execute_command("WAITAOF", 1, 0, 5000)
        first = supervisor.pid("broker")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while supervisor.pid("broker") in (None, first):
            supervisor.tend()
        broker.wait(supervisor.pid("broker"), lambda: True)
        assert client.lrange("cloudsuite", 0, -1) == [b"message"]


def test_it_refuses_strangers_and_forgets_nothing(supervisor, tmp_path):
    broker = new_broker(tmp_path)
    start(supervisor, broker)
    with redis.Redis(host="127.0.0.1", port=broker.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(broker.url) as client:
        told = client.config_get("*")
    assert (told["bind"], told["maxmemory-policy"], told["appendonly"], told["save"]) == (
        "127.0.0.1",
        "noeviction",
        "yes",
        "",
    )


def test_it_is_found_by_others_while_it_runs(tmp_path):
    settings = read_settings({"ORDERFLEET_HOME": str(tmp_path)})
    with pytest.raises(WrongSettings, match="BROKER_URL"):
        with_broker(settings)
    broker = new_broker(tmp_path)
    broker.write_files()
    assert with_broker(settings).broker_url == broker.url
    broker.remove_url()
    broker.remove_url()
    with pytest.raises(WrongSettings, match="BROKER_URL"):
        with_broker(settings)


def test_a_server_that_ended_is_not_waited_for(tmp_path):
    broker = EmbeddedBroker(tmp_path, free_port(), "password")
    with pytest.raises(NotAnswering, match=f"127.0.0.1:{broker.port}"):
        broker.wait(1, lambda: False)


def test_somebody_elses_server_is_not_ours(supervisor, tmp_path):
    broker = new_broker(tmp_path)
    start(supervisor, broker)
    with pytest.raises(NotAnswering):
        broker.wait(os.getpid(), lambda: True, seconds=0.2)


def test_private_files_are_private(tmp_path: Path):
    path = tmp_path / "broker.url"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["broker.url"]


def test_a_free_port_is_given_once():
    assert len({free_port() for _ in range(2000)}) == 2000
