"""The doctor says what is wrong and what to do, and nothing makes it crash."""

from pathlib import Path

import pytest

from ledger import intake, remotes, upkeep
from ledger.connection import Ledger
from orders.states import State
from tests.unit.workers.conftest import Desk


def checks(desk: Desk, code: int, **environment: str) -> dict[str, dict[str, str]]:
    """What it found, by what it looked at; the worst of each."""
    desk.environment |= environment
    found = sorted(desk.json("doctor", code=code), key=lambda check: ["ok", "warning", "red"].index(check["level"]))
    return {check["check"]: check for check in found}


def levels(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["level"] for name, check in found.items()}


@pytest.fixture
def well(open_desk: Desk, valkey) -> Desk:
    """Everything is as it should be: a broker, a shop, a live worker."""
    open_desk.environment["BROKER_URL"] = valkey.url
    upkeep.beat(open_desk.ledger, "w1")
    return open_desk


def test_a_healthy_fleet(well):
    found = checks(well, 0)
    assert levels(found) == dict.fromkeys(
        ["settings", "ledger", "broker", "erp", "cloudsuite:default", "workers", "orders"], "ok"
    )
    assert found["cloudsuite:default"]["text"] == "0 confirmed orders"


def test_for_people_it_is_a_line_each_with_what_to_do(well):
    (order,) = well.take_in("17")
    well.park(order, "sent, and no answer", State.IN_DOUBT)
    lines = [" ".join(line.split()) for line in well.run("doctor").stdout.splitlines()]
    assert len(lines) == 7
    assert lines[-1] == "warning orders 1 wait for a person → see orderfleet failed"


def test_without_anything_set_it_says_where_to_begin(tmp_path):
    desk = Desk(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), {"ORDERFLEET_HOME": str(tmp_path)})
    found = checks(desk, 1)
    assert found["ledger"]["advice"] == "run orderfleet migrate"
    assert found["broker"]["advice"] == "start orderfleet up, which brings one, or set BROKER_URL"
    assert "CLOUDSUITE_URL" in found["settings"]["advice"]
    desk.ledger.close()


def test_wrong_settings_are_red_lines(desk):
    desk.environment |= {"WEBHOOKS_BIND": "x", "DATABASE_URL": "mysql://db/ledger"}
    found = desk.json("doctor", code=1)
    assert {check["level"] for check in found} == {"red"}
    assert (
        sorted(check["text"].partition(":")[0] for check in found) == ["DATABASE_URL", "ERP_URL", "WEBHOOKS_BIND"][::2]
    )


def test_a_ledger_that_is_away(well):
    url = "postgresql://nobody:secret@127.0.0.1:9/none"
    found = checks(well, 1, DATABASE_URL=url, ERP_URL=well.environment["DATABASE_URL"])
    assert found["ledger"]["level"] == "red"
    assert "DATABASE_URL" in found["ledger"]["advice"]
    assert "secret" not in str(found)
    assert (found["broker"]["level"], found["erp"]["level"]) == ("ok", "ok")


def test_a_check_that_fails_by_surprise_is_a_red_line_too(well):
    url = "postgresql://nobody@127.0.0.1:9/none"
    found = checks(well, 1, DATABASE_URL=url, ERP_URL=well.environment["DATABASE_URL"], CLOUDSUITE_RATE="5")
    assert found["cloudsuite:default"]["level"] == "red"
    assert found["erp"]["level"] == "ok"


def test_a_ledger_without_a_folder(well):
    found = checks(well, 1, DATABASE_URL="sqlite:////dev/null/ledger.db")
    assert (found["settings"]["level"], "DATABASE_URL" in found["settings"]["text"]) == ("red", True)


def test_a_broker_that_is_away_keeps_its_password(well):
    found = checks(well, 1, BROKER_URL="redis://:secret@127.0.0.1:9/0")
    assert found["broker"]["level"] == "red"
    assert "secret" not in str(found)
    assert found["cloudsuite:default"]["level"] == "ok"


def test_a_broker_that_refuses_the_password(well, valkey):
    with valkey.client() as client:
        client.config_set("requirepass", "right")
    found = checks(well, 1, BROKER_URL=valkey.url.replace("redis://", "redis://:wrong@"))
    assert found["broker"]["level"] == "red"


def test_a_broker_that_drops_messages(well, valkey):
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    found = checks(well, 0)
    assert found["broker"]["level"] == "warning"
    assert "noeviction" in found["broker"]["advice"]


def test_rabbitmq_is_a_broker(well, rabbitmq_url):
    assert checks(well, 0, BROKER_URL=rabbitmq_url)["broker"]["level"] == "ok"


def test_credentials_that_the_shop_refuses(well):
    found = checks(well, 1, CLOUDSUITE_CLIENT_SECRET="stolen")
    assert found["cloudsuite:default"]["level"] == "red"
    assert "CLOUDSUITE_" in found["cloudsuite:default"]["advice"]
    assert "stolen" not in str(found)


def test_a_shop_that_does_not_answer(well):
    found = checks(well, 1, CLOUDSUITE_URL="http://127.0.0.1:9", CLOUDSUITE_TOKEN_URL="http://127.0.0.1:9/token")
    assert found["cloudsuite:default"]["level"] == "red"
    assert found["broker"]["level"] == "ok"


def test_an_erp_whose_tables_are_missing(well, tmp_path):
    found = checks(well, 1, ERP_URL=f"sqlite:///{tmp_path / 'erp.db'}")
    assert found["erp"]["level"] == "red"
    assert found["erp"]["advice"]


def test_an_erp_url_that_its_adapter_cannot_read(well):
    found = checks(well, 1, ERP_URL="postgresql://host:port/erp")
    assert (found["settings"]["level"], "ERP_URL" in found["settings"]["text"]) == ("red", True)


def test_steps_that_may_take_too_long(well):
    found = checks(well, 0, CLOUDSUITE_TIMEOUT="300")
    assert found["cloudsuite:default"]["level"] == "warning"
    assert found["cloudsuite:default"]["advice"] == "set CLOUDSUITE_TIMEOUT to 150 at most"


def test_no_worker_is_bad_once_orders_are_due(well):
    upkeep.sign_off(well.ledger, "w1")
    assert checks(well, 0)["workers"]["level"] == "warning"
    well.take_in("17")
    assert checks(well, 1)["workers"]["level"] == "red"


def test_a_remote_that_is_left_alone_and_an_event_without_an_order(well):
    remotes.close_gate(well.ledger, "cloudsuite:default", 60.0, "HTTP 503")
    intake.keep_odd_event(well.ledger, "erp", "default", "erp:1", "shipped", "{}", "no order")
    found = checks(well, 0)
    assert found["lane cloudsuite:default"]["text"].endswith("HTTP 503")
    assert found["events"]["advice"] == "see orderfleet events"


def test_a_sqlite_ledger_and_a_broker_elsewhere(tmp_path: Path):
    from workers.doctor import _dangers
    from workers.settings import read_settings

    settings = read_settings({"ORDERFLEET_HOME": str(tmp_path)})
    (danger,) = _dangers(settings, "redis://broker.example:6379/0", None)
    assert "PostgreSQL" in danger.advice
    assert list(_dangers(settings, "redis://127.0.0.1:6379/0", "noeviction")) == []
