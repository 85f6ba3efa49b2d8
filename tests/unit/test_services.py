"""The servers of tests/services.py behave as the tests that use them believe."""

from pathlib import Path

import psycopg
import pymysql
import pytest
import redis
from kombu import Connection
from sqlalchemy import create_engine, inspect, make_url

from ledger.models import metadata
from tests import services

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]


def test_a_killed_server_comes_back_empty_on_the_same_port(private_valkey):
    with private_valkey() as server, server.client() as client:
        client.set("key", "value")
        url, pid = server.url, server.pid
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert server.url == url
        assert server.pid != pid
        assert client.get("key") is None


def test_a_durable_server_keeps_its_keys_over_a_kill(private_valkey):
    with private_valkey(durable=True) as server, server.client() as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert client.get("key") == b"value"


def test_flush_empties_the_server(valkey):
    with valkey.client() as client:
        client.set("key", "value")
        valkey.flush()
        assert client.dbsize() == 0


def test_two_servers_know_nothing_of_each_other(private_valkey):
    with private_valkey() as one, private_valkey() as two:
        assert one.port != two.port
        with one.client() as first, two.client() as second:
            first.set("key", "value")
            assert second.get("key") is None


def test_a_server_leaves_nothing_behind(private_valkey):
    with private_valkey() as server:
        folder = server.folder
        server.restart()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid


def test_a_server_that_cannot_start_shows_its_log(tmp_path, valkey):
    server = services.PrivateValkey(tmp_path)
    server.port = valkey.port
    with pytest.raises(RuntimeError, match=r"(?i)address already in use"):
        server.start()


def test_the_carried_binary_is_used_where_the_machine_has_none(monkeypatch, tmp_path):
    monkeypatch.delenv("TEST_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(services.redis_binary()).name == "valkey-server"
    with services.private_valkey() as server, server.client() as client:
        assert client.ping()


def test_postgresql_databases_come_and_go(postgresql_server):
    with services.fresh_postgresql(postgresql_server) as url:
        name = make_url(url).database
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == (name,)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url.replace("+psycopg", ""))


def test_mysql_databases_come_and_go(mysql_server):
    with services.fresh_mysql(mysql_server) as url:
        made = make_url(url)
        assert _mysql_database_exists(made)
    assert not _mysql_database_exists(made)


def _mysql_database_exists(url):
    server = pymysql.connect(host=url.host, port=url.port, user=url.username, password=url.password or "")
    with server, server.cursor() as cursor:
        return cursor.execute("SHOW DATABASES LIKE %s", (url.database,)) == 1


def test_rabbitmq_queues_are_deleted(rabbitmq_url):
    broker = services.RabbitMQ(rabbitmq_url)
    name = broker.queue("cloudsuite")
    with Connection(broker.url) as connection:
        connection.channel().queue_declare(name)
        broker.clean_up()
        with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            connection.channel().queue_declare(name, passive=True)


def test_the_ledger_url_has_the_ledgers_tables(ledger_url):
    engine = create_engine(ledger_url)
    assert set(metadata.tables) < set(inspect(engine).get_table_names())
    engine.dispose()


def test_the_empty_database_is_empty(empty_database_url):
    engine = create_engine(empty_database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.fixture
def small_run(pytester, monkeypatch):
    """A test run with our hooks in which one test passes and one lacks its server."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        """
        import pytest
        from tests import services

        def test_without_server(): services.leave_out("RabbitMQ")
        def test_fine(): pass
        def test_skipped_for_another_reason(): pytest.skip("not on this system")
        """
    )
    return pytester


def test_what_is_left_out_is_said_at_the_end(small_run, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    result = small_run.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["1 for want of RabbitMQ: start one on * or set TEST_RABBITMQ_URL."])
    assert result.ret == 0


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_in_ci_leaving_out_is_a_failure(small_run, monkeypatch, options):
    monkeypatch.setenv("CI", "true")
    result = small_run.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1, skipped=1, failed=1)
    result.stdout.fnmatch_lines(["CI leaves nothing out: *not run here: no RabbitMQ server"])
    assert result.ret == 1


def test_flows_run_in_one_process(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\nmarkers = flows: real processes")
    pytester.makeconftest("from tests.conftest import *")
    flows = pytester.mkdir("tests") / "flows"
    flows.mkdir()
    for name in ("one", "two", "three"):
        flows.joinpath(f"test_{name}.py").write_text(
            "import pytest\n"
            "@pytest.mark.parametrize('number', range(2))\n"
            "def test_flow(number, worker_id): print(f'flow on {worker_id}')\n"
        )
    pytester.makepyfile(test_quick="def test_quick(worker_id): print(f'quick on {worker_id}')")
    result = pytester.runpytest_subprocess("-n", "2", "-rP", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=7)
    assert len({line for line in result.outlines if line.startswith("flow on ")}) == 1
    quick = pytester.runpytest_subprocess("-m", "not flows", "-p", "no:cacheprovider")
    quick.assert_outcomes(passed=1, deselected=6)
