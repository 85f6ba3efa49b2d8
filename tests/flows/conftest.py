"""A real fleet: broker, shop and ERP on loopback, worker and beat processes that may be killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.flows.harness import Fleet, Shop, a_shop, an_erp, shop_settings
from tests.services import PrivateValkey


@pytest.fixture
def shop() -> Iterator[Shop]:
    """The CloudSuite imitation behind real HTTP."""
    with a_shop() as opened:
        yield opened


@pytest.fixture
def fleet(shop: Shop, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with its ledger on each database, whose ERP answers at once; no process runs yet."""
    opened = Fleet(tmp_path, {**shop_settings(shop), "BROKER_URL": valkey.url, "DATABASE_URL": ledger_url})
    try:
        with an_erp(opened.settings.erp_url, ship_after_seconds=0.2):
            yield opened
    finally:
        opened.close()


@pytest.fixture
def rabbitmq_vhost(rabbitmq_url: str) -> Iterator[str]:
    """The URL of a virtual host of this test's own: a fleet's queues have fixed names."""
    with services.fresh_rabbitmq_vhost(rabbitmq_url) as url:
        yield url
