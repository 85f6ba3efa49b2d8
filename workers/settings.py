"""The environment, read once. All problems are reported together, by name, with what to set."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from databases.connect import database_url
from erp.port import ADAPTERS

BROKER_FILE = "broker.url"
"""In the home folder: where the broker that `orderfleet up` started listens, as long as it runs."""
SANDBOX_FILE = "sandbox.json"
"""In the home folder: the settings that point at the imitations, while `orderfleet up --sandbox` runs."""
CLOUDSUITE_TOKEN_URL = "https://id.cloudsuite.io/realms/CloudSuite/protocol/openid-connect/token"


class WrongSettings(Exception):
    """Some settings are missing or wrong. `problems`: one line each, beginning with the setting's name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Bind:
    """An address to listen on."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """One account of one system. `rate` is in requests per second (None: no limit), `timeout` and `poll_seconds` in
    seconds; `options` is what only this system has."""

    system: str
    name: str
    url: str
    poll_seconds: float
    timeout: float
    rate: float | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. `broker_url` None: `orderfleet up` starts an embedded one."""

    home: Path
    database_url: str
    broker_url: str | None
    erp_url: str
    erp_poll_seconds: float
    webhooks: Bind
    console: Bind
    flower: Bind
    concurrency: int
    accounts: tuple[AccountSettings, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that are switched on."""
        return tuple(dict.fromkeys(account.system for account in self.accounts))


class Reader:
    """Reads values from an environment and collects what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text; an empty one counts as not set."""
        return self._environment.get(name, "").strip() or default

    def number(self, name: str, default: float, *, least: float) -> float:
        """A number of at least `least`."""
        raw = self.text(name)
        try:
            value = default if raw is None else float(raw)
        except ValueError:
            value = float("nan")
        if math.isfinite(value) and value >= least:
            return value
        self.problems.append(f"{name}: {raw!r} is not a number of at least {least:g}")
        return default

    def whole(self, name: str, default: int | None, *, least: int) -> int | None:
        """A whole number of at least `least`."""
        raw = self.text(name)
        if raw is None:
            return default
        if raw.isdecimal() and int(raw) >= least:
            return int(raw)
        self.problems.append(f"{name}: {raw!r} is not a whole number of at least {least}")
        return default

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        raw = self.text(name, default) or default
        if raw in choices:
            return raw
        self.problems.append(f"{name}: {raw!r} is not one of {', '.join(choices)}")
        return default

    def url(self, name: str, default: str | None = None) -> str | None:
        """An http(s) address, without a slash at its end."""
        raw = self.text(name, default)
        if raw is None:
            return None
        parts = urlsplit(raw)
        if parts.scheme in ("http", "https") and parts.hostname:
            return raw.rstrip("/")
        self.problems.append(f"{name}: {_without_login(raw)!r} is not an address like https://api.example.com")
        return None

    def bind(self, name: str, default: str) -> Bind:
        """host:port"""
        raw = self.text(name, default) or default
        host, _, port = raw.rpartition(":")
        if host and port.isdecimal() and int(port) < 65536:
            return Bind(host.strip("[]"), int(port))
        self.problems.append(f"{name}: {raw!r} is not an address like {default}")
        return self.bind("", default)

    def ledger(self, name: str, default: str) -> str:
        """The URL of a database that can be the ledger."""
        raw = self.text(name, default) or default
        try:
            url = database_url(raw)
        except Exception as error:  # SQLAlchemy's parser raises several kinds; each is a wrong setting
            self.problems.append(f"{name}: {error}")
            return default
        backend = url.get_backend_name()
        if backend not in ("postgresql", "sqlite"):
            self.problems.append(f"{name}: {backend}:// cannot be the ledger: use postgresql:// or sqlite:///")
        elif backend == "sqlite" and url.database in (None, "", ":memory:"):
            self.problems.append(f"{name}: {raw!r} is forgotten at the end of the process: name a file")
        return raw

    def erp(self, name: str, default: str) -> str:
        """A URL whose scheme an ERP adapter serves."""
        raw = self.text(name, default) or default
        if urlsplit(raw).scheme.partition("+")[0] not in ADAPTERS:
            known = ", ".join(f"{scheme}://" for scheme in ADAPTERS)
            self.problems.append(f"{name}: {_without_login(raw)!r} is not an ERP we know: use one of {known}")
        return raw


def _without_login(url: str) -> str:
    """What may be shown of a URL."""
    return url.rpartition("@")[2]


class AccountReader:
    """Reads the settings of one account: `DOSHII_NORTH_TOKEN`, else `DOSHII_TOKEN`."""

    def __init__(self, reader: Reader, system: str, account: str, *, only: bool) -> None:
        self.reader = reader
        self._system = system.upper()
        self._own = None if only else f"{self._system}_{_variable(account)}_"

    def name(self, setting: str) -> str:
        """The variable that counts for this account."""
        if self._own is not None and self.reader.text(self._own + setting) is not None:
            return self._own + setting
        return f"{self._system}_{setting}"

    def text(self, setting: str, default: str | None = None) -> str | None:
        return self.reader.text(self.name(setting), default)

    def whole(self, setting: str, *, least: int = 0) -> int | None:
        return self.reader.whole(self.name(setting), None, least=least)

    def choice(self, setting: str, choices: tuple[str, ...]) -> str:
        return self.reader.choice(self.name(setting), choices, choices[0])

    def missing(self, problem: str) -> None:
        self.reader.problems.append(problem)


def _variable(account: str) -> str:
    """An account's name as part of a variable's."""
    return account.upper().replace("-", "_")


def _cloudsuite(read: AccountReader) -> dict[str, Any]:
    token, client_id, secret = read.text("TOKEN"), read.text("CLIENT_ID"), read.text("CLIENT_SECRET")
    if token is None and (client_id is None or secret is None):
        read.missing(
            f"{read.name('CLIENT_ID')} and {read.name('CLIENT_SECRET')}: set both (or {read.name('TOKEN')}, the old "
            "way), as CloudSuite gave them to you"
        )
    delivery = read.choice("DELIVERY", ("shipment_state", "desadv", "done"))
    shop, user = read.whole("DESADV_SHOP"), read.whole("DESADV_USER")
    if delivery == "desadv" and (shop is None or user is None):
        read.missing(
            f"{read.name('DESADV_SHOP')} and {read.name('DESADV_USER')}: set both, your shop and user number for "
            "delivery messages"
        )
    return {
        "token": token,
        "client_id": client_id,
        "client_secret": secret,
        "token_url": read.reader.url(read.name("TOKEN_URL"), CLOUDSUITE_TOKEN_URL),
        "webshop": read.whole("WEBSHOP"),
        "payment_none": read.choice("PAYMENT_NONE", ("hold", "process")),
        "delivery": delivery,
        "offline": read.choice("OFFLINE", ("ignore", "ship")),
        "shop": shop,
        "user": user,
    }


SYSTEMS: dict[str, tuple[float, Callable[[AccountReader], dict[str, Any]]]] = {
    "cloudsuite": (60.0, _cloudsuite),
}
"""Per system: seconds between polls, and what reads its own settings."""


def _accounts(reader: Reader, system: str) -> list[AccountSettings]:
    prefix = system.upper()
    names = [name.strip() for name in (reader.text(f"{prefix}_ACCOUNTS") or "").split(",") if name.strip()]
    wrong = [name for name in names if not name.replace("-", "").replace("_", "").isalnum()]
    if wrong:
        reader.problems.append(f"{prefix}_ACCOUNTS: {', '.join(wrong)}: use letters, digits, - and _ only")
        return []
    if len({_variable(name) for name in names}) < len(names):
        reader.problems.append(f"{prefix}_ACCOUNTS: two accounts would share their settings; give each its own name")
        return []
    accounts = [_account(reader, system, name, only=False) for name in names] or [
        _account(reader, system, "default", only=True)
    ]
    return [account for account in accounts if account is not None]


def _account(reader: Reader, system: str, name: str, *, only: bool) -> AccountSettings | None:
    read = AccountReader(reader, system, name, only=only)
    if read.text("URL") is None:
        if not only:
            read.missing(f"{read.name('URL')}: account {name} has no address")
        return None
    poll_seconds, own = SYSTEMS[system]
    rate = reader.number(read.name("RATE"), 0.0, least=0.0)
    return AccountSettings(
        system=system,
        name=name,
        url=reader.url(read.name("URL")) or "",
        poll_seconds=reader.number(read.name("POLL_SECONDS"), poll_seconds, least=0.5),
        timeout=reader.number(read.name("TIMEOUT"), 20.0, least=0.1),
        rate=rate or None,
        options=own(read),
    )


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment` (the process's own by default). Raises `WrongSettings` with all problems."""
    reader = Reader(os.environ if environment is None else environment)
    home = Path(reader.text("ORDERFLEET_HOME", ".orderfleet") or "").absolute()
    reader = Reader(_in_sandbox(home, os.environ if environment is None else environment))
    ledger = reader.ledger("DATABASE_URL", f"sqlite:///{home / 'ledger.db'}")
    settings = Settings(
        home=home,
        database_url=ledger,
        broker_url=_broker_url(reader),
        erp_url=reader.erp("ERP_URL", ledger),
        erp_poll_seconds=reader.number("ERP_POLL_SECONDS", 15.0, least=0.1),
        webhooks=reader.bind("WEBHOOKS_BIND", "127.0.0.1:8000"),
        console=reader.bind("CONSOLE_BIND", "127.0.0.1:8001"),
        flower=reader.bind("FLOWER_BIND", "127.0.0.1:5555"),
        concurrency=reader.whole("WORKER_CONCURRENCY", 16, least=1) or 16,
        accounts=tuple(account for system in SYSTEMS for account in _accounts(reader, system)),
    )
    if reader.problems:
        raise WrongSettings(reader.problems)
    return settings


def _broker_url(reader: Reader) -> str | None:
    raw = reader.text("BROKER_URL")
    if raw is not None and urlsplit(raw).scheme not in (
        "redis",
        "rediss",
        "valkey",
        "amqp",
        "amqps",
        "pyamqp",
    ):
        reader.problems.append(f"BROKER_URL: {_without_login(raw)!r} is not redis://, rediss://, valkey:// or amqp://")
    if raw is not None and raw.startswith("valkey://"):
        return "redis://" + raw.removeprefix("valkey://")
    return raw


def names_a_place(name: str) -> bool:
    """Whether a variable says where a real system, ledger, broker or ERP is, or how to get in."""
    return name in ("DATABASE_URL", "BROKER_URL", "ERP_URL") or name.startswith(
        tuple(f"{system.upper()}_" for system in SYSTEMS)
    )


def _in_sandbox(home: Path, environment: Mapping[str, str]) -> Mapping[str, str]:
    """In the home of a running sandbox its own settings count, and nothing real is met by mistake."""
    try:
        own: dict[str, str] = json.loads((home / SANDBOX_FILE).read_text())
    except FileNotFoundError:
        return environment
    return {name: value for name, value in environment.items() if not names_a_place(name)} | own


def with_broker(settings: Settings) -> Settings:
    """The settings with a broker: the one that is set, else the one `orderfleet up` runs. Raises `WrongSettings`."""
    if settings.broker_url is not None:
        return settings
    file = settings.home / BROKER_FILE
    try:
        return replace(settings, broker_url=file.read_text().strip())
    except FileNotFoundError:
        raise WrongSettings(
            [
                f"BROKER_URL: not set, and no `orderfleet up` runs in {settings.home}: set it to redis://host:6379/0 "
                "or amqp://user:password@host:5672//, or start `orderfleet up`, which brings a broker"
            ]
        ) from None
