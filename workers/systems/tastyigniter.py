"""TastyIgniter: its settings, and how its account is built from them."""

import re
from collections.abc import Sequence
from typing import Any

import tasks.tastyigniter
from clients.base import StaticToken
from clients.tastyigniter import TastyIgniter
from schemas.tastyigniter import Statuses
from tasks.base import Account
from tasks.tastyigniter_order import Options
from webhooks.base import Receiver
from webhooks.tastyigniter import Secret, TastyIgniterReceiver
from workers.reading import AccountReader, AccountSettings
from workers.systems.base import Wiring


def _read(read: AccountReader) -> dict[str, Any]:
    zone = read.zone("TIMEZONE")
    if zone is None and read.text("TIMEZONE") is None:
        read.missing(
            f"{read.name('TIMEZONE')}: set it to the site's time zone, such as Europe/London: the API hides it"
        )
    return {
        "token": read.needed(
            "TOKEN", "a token of the site's API, of a member of staff, with the ability orders:* or *"
        ),
        "webhook_secret": read.text("WEBHOOK_SECRET"),
        "webhook_header": _header(read),
        "zone": zone,
        "currency": _currency(read),
        "statuses": _statuses(read),
        "product": read.text("ORDER_PRODUCT", "ORDER"),
        "lines_seconds": read.whole("LINES_SECONDS", 120),
    }


def _header(read: AccountReader) -> str | None:
    header = read.text("WEBHOOK_HEADER")
    if header is not None and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header):
        read.missing(f"{read.name('WEBHOOK_HEADER')}: {header!r} is not the name of a header, such as TI-Signature")
    return header


def _currency(read: AccountReader) -> str | None:
    currency = read.text("CURRENCY")
    if currency is not None and not re.fullmatch(r"[A-Za-z]{3}", currency):
        read.missing(f"{read.name('CURRENCY')}: {currency!r} is not a currency such as EUR")
    return None if currency is None else currency.upper()


def _statuses(read: AccountReader) -> Statuses:
    known = Statuses()
    statuses = Statuses(
        preparing=read.whole("STATUS_PREPARING", known.preparing, least=1) or 0,
        completed=read.whole("STATUS_COMPLETED", known.completed, least=1) or 0,
        canceled=read.whole("STATUS_CANCELED", known.canceled, least=1) or 0,
    )
    if len({statuses.preparing, statuses.completed, statuses.canceled}) < 3:
        read.missing(f"{read.name('STATUS_PREPARING')}, _COMPLETED and _CANCELED: give each a status id of its own")
    return statuses


def _build(settings: AccountSettings, **common: Any) -> Account:
    options = dict(settings.options)
    auth = StaticToken("Authorization", f"Bearer {options.pop('token')}")
    webhooks = options.pop("webhook_secret") is not None
    del options["webhook_header"]
    client = TastyIgniter(settings.url, auth=auth, timeout=settings.timeout, **common)
    return Account(
        "tastyigniter",
        settings.name,
        client,
        Options(**options, webhooks=webhooks),
        settings.poll_seconds,
    )


def _receiver(accounts: Sequence[AccountSettings]) -> Receiver:
    return TastyIgniterReceiver(
        {
            one.name: Secret(one.options["webhook_secret"], one.options["webhook_header"])
            for one in accounts
            if one.options["webhook_secret"] is not None
        }
    )


WIRING = Wiring(system=tasks.tastyigniter.SYSTEM, poll_seconds=60.0, read=_read, build=_build, receiver=_receiver)
