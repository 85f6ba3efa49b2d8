"""The environment, read once. All problems are reported together, by name, with what to set."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from workers.reading import AccountReader, AccountSettings, Bind, Reader, WrongSettings, variable, without_login
from workers.systems import SYSTEMS

__all__ = ["AccountSettings", "Bind", "Settings", "WrongSettings", "names_a_place", "read_settings", "with_broker"]

BROKER_FILE = "broker.url"
"""In the home folder: where the broker that `orderfleet up` started listens, as long as it runs."""
SANDBOX_FILE = "sandbox.json"
"""In the home folder: the settings that point at the imitations, while `orderfleet up --sandbox` runs."""


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


def _accounts(reader: Reader, system: str) -> list[AccountSettings]:
    prefix = system.upper()
    names = [name.strip() for name in (reader.text(f"{prefix}_ACCOUNTS") or "").split(",") if name.strip()]
    wrong = [name for name in names if not name.replace("-", "").replace("_", "").isalnum()]
    if wrong:
        reader.problems.append(f"{prefix}_ACCOUNTS: {', '.join(wrong)}: use letters, digits, - and _ only")
        return []
    if len({variable(name) for name in names}) < len(names):
        reader.problems.append(f"{prefix}_ACCOUNTS: two accounts would share their settings; give each its own name")
        return []
    accounts = [_account(reader, system, name, only=False) for name in names] or [
        _account(reader, system, "default", only=True)
    ]
    return [account for account in accounts if account is not None]


def _account(reader: Reader, system: str, name: str, *, only: bool) -> AccountSettings | None:
    read = AccountReader(reader, system, name, only=only)
    wiring = SYSTEMS[system]
    if not any(read.text(setting) is not None for setting in wiring.switches):
        if not only:
            read.missing(f"{read.name(wiring.switches[0])}: account {name} has no address")
        return None
    rate = reader.number(read.name("RATE"), 0.0, least=0.0)
    return AccountSettings(
        system=system,
        name=name,
        url=read.url("URL") or "",
        poll_seconds=reader.number(read.name("POLL_SECONDS"), wiring.poll_seconds, least=0.5),
        timeout=reader.number(read.name("TIMEOUT"), wiring.timeout, least=0.1),
        rate=rate or None,
        options=wiring.read(read),
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
        reader.problems.append(f"BROKER_URL: {without_login(raw)!r} is not redis://, rediss://, valkey:// or amqp://")
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
