"""How values are read from the environment: one problem a line, each beginning with the setting's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from databases.connect import database_url
from erp.port import ADAPTERS


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
        self.problems.append(f"{name}: {without_login(raw)!r} is not an address like https://api.example.com")
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
            self.problems.append(f"{name}: {without_login(raw)!r} is not an ERP we know: use one of {known}")
        return raw


def without_login(url: str) -> str:
    """What may be shown of a URL."""
    return url.rpartition("@")[2]


class AccountReader:
    """Reads the settings of one account: `DOSHII_NORTH_TOKEN`, else `DOSHII_TOKEN`."""

    def __init__(self, reader: Reader, system: str, account: str, *, only: bool) -> None:
        self.reader = reader
        self._system = system.upper()
        self._own = None if only else f"{self._system}_{variable(account)}_"

    def name(self, setting: str) -> str:
        """The variable that counts for this account."""
        if self._own is not None and self.reader.text(self._own + setting) is not None:
            return self._own + setting
        return f"{self._system}_{setting}"

    def text(self, setting: str, default: str | None = None) -> str | None:
        """A text; an empty one counts as not set."""
        return self.reader.text(self.name(setting), default)

    def needed(self, setting: str, what: str) -> str:
        """A text that must be set: `what` says what it is, for who has to set it."""
        value = self.text(setting)
        if value is None:
            self.missing(f"{self.name(setting)}: set it: {what}")
        return value or ""

    def whole(self, setting: str, default: int | None = None, *, least: int = 0) -> int | None:
        """A whole number of at least `least`."""
        return self.reader.whole(self.name(setting), default, least=least)

    def choice(self, setting: str, choices: tuple[str, ...]) -> str:
        """One of a few words, the first by default."""
        return self.reader.choice(self.name(setting), choices, choices[0])

    def flag(self, setting: str) -> bool:
        """`yes` or `no`, which is the default."""
        return self.choice(setting, ("no", "yes")) == "yes"

    def url(self, setting: str, default: str | None = None) -> str | None:
        """An http(s) address, without a slash at its end."""
        return self.reader.url(self.name(setting), default)

    def pairs(self, setting: str, form: str) -> dict[str, str]:
        """`key=value,key=value`; `form` is shown when it is not."""
        pairs: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in (self.text(setting) or "").split(","))):
            key, equals, value = (word.strip() for word in part.rpartition("="))
            if not (key and equals and value) or key in pairs:
                self.missing(f"{self.name(setting)}: its part {len(pairs) + 1} is not of the form {form}, or a double")
                return {}
            pairs[key] = value
        return pairs

    def zone(self, setting: str, default: str | None = None) -> ZoneInfo | None:
        """A time zone by its IANA name."""
        name = self.text(setting, default)
        if name is None:
            return None
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.missing(f"{self.name(setting)}: {name!r} is not a time zone like Europe/Berlin")
            return None

    def missing(self, problem: str) -> None:
        """Report a problem: a sentence that begins with the setting's name."""
        self.reader.problems.append(problem)


def variable(account: str) -> str:
    """An account's name as part of a variable's."""
    return account.upper().replace("-", "_")
