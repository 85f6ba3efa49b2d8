"""Fixtures for every test. What only one folder's tests need is in the conftest.py of that folder."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import URL
from xdist.scheduler import LoadScopeScheduling

from tests import services
from tests.services import PrivateValkey, RabbitMQ

# === Servers: what is missing is left out and said so; in CI it is a failure ================================


def pytest_configure(config):
    """A shell's background ignores SIGINT, and so would every process that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a test left out for want of a server has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and services.left_out_server(_reason(report)):
        report.outcome = "failed"
        report.longrepr = f"CI leaves nothing out: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter):
    """Say at the end what was left out, and how to have it run."""
    reports = terminalreporter.stats.get("skipped", [])
    servers = Counter(server for report in reports if (server := services.left_out_server(_reason(report))))
    if not servers:
        return
    terminalreporter.section("tests not run here")
    for server, count in sorted(servers.items()):
        terminalreporter.line(f"{count} for want of {server}: {services.HOW_TO_GET[server]}.")


def _reason(report: pytest.TestReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else ""


@pytest.fixture(scope="session")
def postgresql_server() -> URL:
    """A server in which databases may be created."""
    return services.find_postgresql() or services.leave_out("PostgreSQL")


@pytest.fixture
def postgresql_url(postgresql_server: URL) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    with services.fresh_postgresql(postgresql_server) as url:
        yield url


@pytest.fixture(scope="session")
def mysql_server() -> URL:
    """A server in which databases may be created."""
    return services.find_mysql() or services.leave_out("MySQL")


@pytest.fixture
def mysql_url(mysql_server: URL) -> Iterator[str]:
    """A new, empty MySQL or MariaDB database."""
    with services.fresh_mysql(mysql_server) as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """A broker that others use, too: see `rabbitmq`."""
    return services.find_rabbitmq() or services.leave_out("RabbitMQ")


@pytest.fixture
def rabbitmq(rabbitmq_url: str) -> Iterator[RabbitMQ]:
    """The broker, with a queue prefix of this test's own."""
    broker = RabbitMQ(rabbitmq_url)
    yield broker
    broker.clean_up()


@pytest.fixture
def private_valkey() -> Callable[..., AbstractContextManager[PrivateValkey]]:
    """`with private_valkey() as server:` starts a Redis or Valkey that may be flushed, killed, restarted."""
    return services.private_valkey


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """One such server, started."""
    with services.private_valkey() as server:
        yield server


# === The ledger: the same tests on both databases ===========================================================


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the ledger's tables, to be copied."""
    path = tmp_path_factory.mktemp("ledger") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server: URL) -> Iterator[str]:
    """The name of a PostgreSQL database with the ledger's tables, to be copied."""
    with services.fresh_postgresql(postgresql_server) as url:
        _migrate(url)
        yield url.rpartition("/")[2]


def _migrate(url: str) -> None:
    # Imported here, so that tests that need no ledger run while it is broken.
    from ledger.connection import Ledger
    from ledger.migrate import migrate

    ledger = Ledger(url)
    try:
        migrate(ledger)
    finally:
        ledger.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new database with the ledger's tables and no rows."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    server = request.getfixturevalue("postgresql_server")
    with services.fresh_postgresql(server, request.getfixturevalue("migrated_postgresql")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database, for tests of migrations."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return request.getfixturevalue("postgresql_url")


# === Processes ==============================================================================================

_FLOWS = "tests/flows/"
_OF_THE_FLEET = {f"test_{name}.py" for name in ("accounts", "kills", "recovery", "storm", "up")}


def pytest_collection_modifyitems(config, items):
    """Everything under tests/flows starts real processes: `-m "not flows"` is the quick part. A storm that differs from
    another one of its system in one thing only runs when somebody asks for large ones."""
    for item in items:
        if item.nodeid.startswith(_FLOWS):
            item.add_marker(pytest.mark.flows)
    if "STORM_ORDERS" not in os.environ:
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


class FlowsInLanes(LoadScopeScheduling):
    """With `-n`, the flows of the fleet itself run one after another in one process, those of single systems in another
    one, and the other tests file by file in whichever is free.

    More flows at once would starve each other on a small machine. (xdist's own groups, `--dist loadgroup`,
    have no effect with pytest 9.2: xdist 3.8 writes them to `Item._nodeid`, which is no longer there.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not file.startswith(_FLOWS):
            return file
        return f"{_FLOWS} of the fleet" if file.removeprefix(_FLOWS) in _OF_THE_FLEET else f"{_FLOWS} of systems"


def pytest_xdist_make_scheduler(config, log):
    """The scheduler for every run with `-n`."""
    return FlowsInLanes(config, log)


# === Fixtures of other subjects go below this line ==========================================================
