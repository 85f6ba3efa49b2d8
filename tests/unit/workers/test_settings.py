"""All problems at once, by name; accounts fall back to their system; nothing wrong gets through."""

import json

import pytest

from workers.settings import BROKER_FILE, SANDBOX_FILE, WrongSettings, read_settings, with_broker

CLOUDSUITE = {"CLOUDSUITE_URL": "https://shop.example/", "CLOUDSUITE_TOKEN": "t"}


def problems(**environment: str) -> list[str]:
    with pytest.raises(WrongSettings) as wrong:
        read_settings(environment)
    return wrong.value.problems


def test_nothing_set_is_a_fleet_without_systems(tmp_path):
    settings = read_settings({"ORDERFLEET_HOME": str(tmp_path)})
    assert (settings.systems, settings.broker_url, settings.concurrency) == ((), None, 16)
    assert settings.database_url == settings.erp_url == f"sqlite:///{tmp_path / 'ledger.db'}"
    assert str(settings.webhooks) == "127.0.0.1:8000"


def test_every_problem_is_named_at_once():
    found = problems(
        DATABASE_URL="mysql://db/ledger",
        BROKER_URL="kafka://user:secret@broker",
        ERP_URL="gopher://user:secret@erp",
        ERP_POLL_SECONDS="soon",
        WEBHOOKS_BIND="8000",
        WORKER_CONCURRENCY="0",
        CLOUDSUITE_URL="shop.example",
        CLOUDSUITE_PAYMENT_NONE="maybe",
    )
    names = [problem.partition(":")[0] for problem in found]
    assert sorted(names) == [
        "BROKER_URL",
        "CLOUDSUITE_CLIENT_ID and CLOUDSUITE_CLIENT_SECRET",
        "CLOUDSUITE_PAYMENT_NONE",
        "CLOUDSUITE_URL",
        "DATABASE_URL",
        "ERP_POLL_SECONDS",
        "ERP_URL",
        "WEBHOOKS_BIND",
        "WORKER_CONCURRENCY",
    ]
    assert "secret" not in "".join(found)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "", "0.05"])
def test_a_number_that_is_none_or_endless_or_too_small(value):
    if value == "":
        assert read_settings({"ERP_POLL_SECONDS": value}).erp_poll_seconds == 15.0
    else:
        assert problems(ERP_POLL_SECONDS=value) == [f"ERP_POLL_SECONDS: {value!r} is not a number of at least 0.1"]


@pytest.mark.parametrize("url", ["mysql://db/x", "oracle://db/x", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_what_cannot_be_the_ledger(url):
    found = problems(DATABASE_URL=url, ERP_URL="sqlite:///erp.db")
    assert [problem.partition(":")[0] for problem in found] == ["DATABASE_URL"]


def test_an_account_falls_back_to_its_system():
    settings = read_settings(
        {
            **CLOUDSUITE,
            "CLOUDSUITE_ACCOUNTS": "north, south-west",
            "CLOUDSUITE_SOUTH_WEST_TOKEN": "own",
            "CLOUDSUITE_SOUTH_WEST_RATE": "2.5",
        }
    )
    north, south = settings.accounts
    assert (north.name, north.options["token"], north.rate) == ("north", "t", None)
    assert (south.name, south.options["token"], south.rate) == ("south-west", "own", 2.5)
    assert north.url == south.url == "https://shop.example"


def test_an_account_without_an_address_is_named():
    assert problems(CLOUDSUITE_ACCOUNTS="north") == ["CLOUDSUITE_URL: account north has no address"]


@pytest.mark.parametrize("names", ["a,a", "a-b,a_b", "A,a"])
def test_accounts_that_would_share_their_settings(names):
    (problem,) = problems(**CLOUDSUITE, CLOUDSUITE_ACCOUNTS=names)
    assert problem.startswith("CLOUDSUITE_ACCOUNTS: two accounts")


def test_an_account_cannot_be_called_like_a_part_of_a_reference():
    (problem,) = problems(**CLOUDSUITE, CLOUDSUITE_ACCOUNTS="a:b")
    assert problem == "CLOUDSUITE_ACCOUNTS: a:b: use letters, digits, - and _ only"


def test_delivery_messages_need_their_numbers():
    (problem,) = problems(**CLOUDSUITE, CLOUDSUITE_DELIVERY="desadv")
    assert problem.startswith("CLOUDSUITE_DESADV_SHOP and CLOUDSUITE_DESADV_USER: set both")


def test_valkey_is_a_redis():
    assert read_settings({"BROKER_URL": "valkey://broker:6379/1"}).broker_url == "redis://broker:6379/1"


class TestTheBrokerThatUpStarted:
    def test_is_found_in_the_home_folder(self, tmp_path):
        (tmp_path / BROKER_FILE).write_text("redis://127.0.0.1:7001/0\n")
        found = with_broker(read_settings({"ORDERFLEET_HOME": str(tmp_path)}))
        assert found.broker_url == "redis://127.0.0.1:7001/0"

    def test_gives_way_to_one_that_is_set(self, tmp_path):
        (tmp_path / BROKER_FILE).write_text("redis://127.0.0.1:7001/0")
        found = with_broker(read_settings({"ORDERFLEET_HOME": str(tmp_path), "BROKER_URL": "amqp://broker"}))
        assert found.broker_url == "amqp://broker"

    def test_is_asked_for_when_there_is_none(self, tmp_path):
        with pytest.raises(WrongSettings, match="BROKER_URL: not set"):
            with_broker(read_settings({"ORDERFLEET_HOME": str(tmp_path)}))


REAL = {
    "CLOUDSUITE_URL": "https://api.cloudsuite.io",
    "CLOUDSUITE_TOKEN": "real",
    "DATABASE_URL": "postgresql://ledger/real",
    "ERP_URL": "mysql://erp/real",
    "WORKER_CONCURRENCY": "3",
}


class TestInTheHomeOfARunningSandbox:
    def test_nothing_real_is_met(self, tmp_path):
        own = {"CLOUDSUITE_URL": "http://127.0.0.1:7002", "CLOUDSUITE_TOKEN": "sandbox"}
        (tmp_path / SANDBOX_FILE).write_text(json.dumps(own))
        settings = read_settings({**REAL, "ORDERFLEET_HOME": str(tmp_path)})
        assert settings.accounts[0].url == "http://127.0.0.1:7002"
        assert settings.accounts[0].options["token"] == "sandbox"
        assert settings.database_url == settings.erp_url == f"sqlite:///{tmp_path / 'ledger.db'}"
        assert settings.concurrency == 3

    def test_elsewhere_the_real_ones_count(self, tmp_path):
        settings = read_settings({**REAL, "ORDERFLEET_HOME": str(tmp_path)})
        assert settings.accounts[0].url == "https://api.cloudsuite.io"
