"""Who may come in at the partner's door, and how often. Contract: contracts/partner.md, sections 1, 5 and 7."""

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol
from zoneinfo import ZoneInfo

from orders.outcomes import Planned

RATE = 10
"""Requests a second of one token."""
_MOST_METERS = 1000


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in for a partner."""

    login: str
    password: str
    partner: str


@dataclass(frozen=True, slots=True)
class Shop:
    """What one account offers, and to whom. `tokens`: the partner of each fixed token. `stores` and `items`: titles by
    id. `closed`: days on which no slot is free. `plan`: what is done with an order."""

    account: str
    tokens: Mapping[str, str]
    users: Sequence[User]
    stores: Mapping[str, str]
    items: Mapping[int, str]
    zone: ZoneInfo
    plan: Sequence[Planned]
    closed: frozenset[date] = frozenset()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is there: a partner, at one account's shop. `meter` counts its requests."""

    shop: Shop
    partner: str
    meter: str = field(repr=False)


class Tokens(Protocol):
    """Where tokens are kept; never the tokens themselves."""

    def add_token(self, holder: str, digest: str) -> None:
        """Let the token with this digest in, and drop the holder's oldest beyond five."""

    def live_token(self, digests: Sequence[str]) -> str | None:
        """The one of these digests that is a live token's."""


class Access:
    """Fixed tokens, and those that a login gives. Thread-safe.

    The digest of a login's token is made with the password: whoever is taken from the settings, or gets another
    password there, is out with all tokens."""

    def __init__(self, shops: Sequence[Shop], tokens: Tokens) -> None:
        self._kept = tokens
        self._users = [(shop, user) for shop in shops for user in shop.users]
        self._fixed = [
            (_plain_digest(token), shop, partner) for shop in shops for token, partner in shop.tokens.items()
        ]

    def visitor(self, token: str | None) -> Visitor | None:
        """Who shows this token; None: nobody known. What is compared is compared in constant time."""
        if not token:
            return None
        shown = _plain_digest(token)
        found = [(shop, partner) for digest, shop, partner in self._fixed if hmac.compare_digest(digest, shown)]
        if found:
            return Visitor(*found[0], shown)
        return self._logged_in(token, shown)

    def _logged_in(self, token: str, meter: str) -> Visitor | None:
        owners = {_digest(user, token): (shop, user) for shop, user in self._users}
        digest = self._kept.live_token(list(owners)) if owners else None
        if digest is None:
            return None
        shop, user = owners[digest]
        return Visitor(shop, user.partner, meter)

    def user(self, login: str, password: str) -> tuple[Shop, User] | None:
        """Whose login and password these are."""
        given = _plain_digest(f"{login}\0{password}")
        found = [
            (shop, user)
            for shop, user in self._users
            if hmac.compare_digest(_plain_digest(f"{user.login}\0{user.password}"), given)
        ]
        return found[0] if found else None

    def logins(self) -> Iterator[str]:
        """The names with which somebody may log in."""
        return (user.login for _, user in self._users)

    def new_token(self, shop: Shop, user: User) -> str:
        """A new token for a user; the oldest one beyond five is worth nothing any more."""
        token = secrets.token_urlsafe(32)
        self._kept.add_token(f"{shop.account}:{user.login}", _digest(user, token))
        return token


def _plain_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digest(user: User, token: str) -> str:
    key = f"{user.login}\0{user.password}".encode()
    return hmac.new(key, token.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


class Meters:
    """So many requests a second by each meter, and as many at once. Of this process alone. Thread-safe."""

    def __init__(self, rate: float = RATE, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._most = _MOST_METERS
        self._lock = threading.Lock()

    def wait(self, meter: str) -> int:
        """0: go on. Else nothing was counted: come again after so many seconds."""
        with self._lock:
            now = self._clock()
            # Each request puts off by one interval the moment at which the meter is full again.
            full_at = max(self._full_at.get(meter, now), now) + 1.0 / self._rate
            if full_at - now > 1.0 + 1e-9:
                return math.ceil(full_at - now - 1.0)
            self._full_at[meter] = full_at
            if len(self._full_at) > self._most:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
                self._most = max(_MOST_METERS, 2 * len(self._full_at))
            return 0
