"""The partner contract: its settings, and how its door and its account are built from them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from flask import Blueprint
from sqlalchemy.exc import SQLAlchemyError

import tasks.partner
import tasks.partner_booking
import webhooks.partner
from clients.partner import PATHS, Login, Pace, Partner
from ledger.inbound import Door
from schemas.partner_fields import day_of
from tasks.base import Account
from webhooks.partner_access import Shop, User
from workers.reading import AccountReader, AccountSettings, WrongSettings
from workers.systems.base import Inbound, Wiring

_LONGEST_NAME = 64
_LONGEST_STORE = 190


# -- settings ---------------------------------------------------------------------------------------------------------


def _read(read: AccountReader) -> dict[str, Any]:
    tokens = read.pairs("INBOUND_TOKENS", "token=partner-name")
    users = _users(read)
    stores, items = read.pairs("STORES", "st-1=Store One"), _items(read)
    _check_names(read, "INBOUND_TOKENS", tokens.values())
    _check_names(read, "INBOUND_USERS", (user.partner for user in users))
    if any(len(store) > _LONGEST_STORE for store in stores):
        read.missing(f"{read.name('STORES')}: an id has at most {_LONGEST_STORE} characters")
    if tokens or users:
        for setting, given, what in (("STORES", stores, "st-1=Store One,..."), ("ITEMS", items, "501=Wardrobe,...")):
            if not given and read.text(setting) is None:
                read.missing(f"{read.name(setting)}: set it: what partners may order, as {what}")
    return {
        "tokens": tokens,
        "users": users,
        "stores": stores,
        "items": items,
        "zone": read.zone("TIMEZONE", "Asia/Nicosia"),
        "closed": _closed(read),
        "outgoing": _outgoing(read) if read.text("URL") is not None else {},
    }


def _users(read: AccountReader) -> list[User]:
    form = "login:password=partner-name"
    users = []
    for number, (credentials, partner) in enumerate(read.pairs("INBOUND_USERS", form).items(), 1):
        login, colon, password = credentials.partition(":")
        if not (login and colon and password):
            read.missing(f"{read.name('INBOUND_USERS')}: its part {number} is not of the form {form}")
        users.append(User(login, password, partner))
    if len({user.login for user in users}) < len(users):
        read.missing(f"{read.name('INBOUND_USERS')}: a login is there twice")
    return users


def _items(read: AccountReader) -> dict[int, str]:
    items = {}
    for item, title in read.pairs("ITEMS", "501=Wardrobe").items():
        if not (item.isascii() and item.isdecimal() and len(item) <= 18):
            read.missing(f"{read.name('ITEMS')}: {item!r} is not a whole number: give each item one, as 501=Wardrobe")
            return {}
        items[int(item)] = title
    return items


def _closed(read: AccountReader) -> frozenset[date]:
    """Days on which no slot is free."""
    given = [part.strip() for part in (read.text("SLOTS_CLOSED") or "").split(",") if part.strip()]
    days = {part: day_of(part) for part in given}
    wrong = [part for part, day in days.items() if day is None]
    if wrong:
        read.missing(f"{read.name('SLOTS_CLOSED')}: {', '.join(wrong)}: give days as 2026-12-25")
    return frozenset(day for day in days.values() if day is not None)


def _check_names(read: AccountReader, setting: str, partners: Any) -> None:
    if any(len(partner) > _LONGEST_NAME for partner in partners):
        read.missing(f"{read.name(setting)}: a partner's name has at most {_LONGEST_NAME} characters")


# -- what partners call -----------------------------------------------------------------------------------------------


def _blueprint(inbound: Inbound) -> Blueprint:
    """Raises `WrongSettings` when two accounts know the same token or login: nobody could say whose it is."""
    problems = [*_in_two_accounts(inbound.accounts)]
    if problems:
        raise WrongSettings(problems)
    routes: Blueprint = webhooks.partner.blueprint(
        [_shop(settings) for settings in inbound.accounts],
        Door(inbound.ledger, "partner"),
        lambda order_ids: inbound.ring("partner", order_ids),
        away=SQLAlchemyError,
    )
    return routes


def _shop(settings: AccountSettings) -> Shop:
    options: Mapping[str, Any] = settings.options
    return Shop(
        account=settings.name,
        tokens=options["tokens"],
        users=options["users"],
        stores=options["stores"],
        items=options["items"],
        zone=options["zone"],
        closed=options["closed"],
        plan=tasks.partner.plan(outgoing=bool(settings.url)),
    )


def _in_two_accounts(accounts: Sequence[AccountSettings]) -> Iterator[str]:
    shown = {
        "INBOUND_TOKENS": Counter(token for one in accounts for token in one.options["tokens"]),
        "INBOUND_USERS": Counter(user.login for one in accounts for user in one.options["users"]),
    }
    for setting, times in shown.items():
        if any(count > 1 for count in times.values()):
            yield f"PARTNER_{setting}: two accounts share one: set PARTNER_<ACCOUNT>_{setting}, without doubles"


# -- what we call -----------------------------------------------------------------------------------------------------


def _outgoing(read: AccountReader) -> dict[str, Any]:
    return {
        "login": read.needed("LOGIN", "the login at the partner service, as they gave it to you"),
        "password": read.needed("PASSWORD", "the password at the partner service"),
        "item_map": _item_map(read),
        "store_map": read.pairs("STORE_MAP", "st-1=7"),
        "paths": _paths(read),
        "look_seconds": float(read.whole("LOOK_SECONDS", 90, least=1) or 90),
    }


def _item_map(read: AccountReader) -> dict[int, int]:
    pairs = read.pairs("ITEM_MAP", "501=9001")
    if not all(number.isascii() and number.isdecimal() for pair in pairs.items() for number in pair):
        read.missing(f"{read.name('ITEM_MAP')}: an id is not a whole number: give your id and theirs, as 501=9001")
        return {}
    return {int(ours): int(theirs) for ours, theirs in pairs.items()}


def _paths(read: AccountReader) -> dict[str, str]:
    """Paths that differ from those we assume."""
    paths = read.pairs("PATHS", "create=/order/create")
    for name, path in paths.items():
        if name not in PATHS:
            read.missing(f"{read.name('PATHS')}: {name!r} is none of {', '.join(PATHS)}")
        elif not path.startswith("/") or (name == "order" and "{id}" not in path):
            read.missing(f"{read.name('PATHS')}: {path!r} is not a path like {PATHS[name]}")
    return paths


def _build(settings: AccountSettings, **common: Any) -> Account:
    """The account; it has a client only where crews are booked. Without a rate it keeps to the contract's."""
    name, poll_seconds, outgoing = settings.name, settings.poll_seconds, settings.options["outgoing"]
    if not settings.url:
        return Account("partner", name, None, None, poll_seconds)
    paths = {**PATHS, **outgoing["paths"]}
    login = Login(
        settings.url, outgoing["login"], outgoing["password"], path=paths["authorize"], timeout=settings.timeout
    )
    if settings.rate is None:
        common["pace"] = Pace()
    client = Partner(settings.url, auth=login, paths=paths, timeout=settings.timeout, **common)
    options = tasks.partner_booking.Options(
        items=outgoing["item_map"],
        stores=outgoing["store_map"],
        zone=settings.options["zone"],
        timeout=settings.timeout,
        look_seconds=outgoing["look_seconds"],
    )
    return Account("partner", name, client, options, poll_seconds)


WIRING = Wiring(
    system=tasks.partner.SYSTEM,
    poll_seconds=15.0,
    read=_read,
    build=_build,
    blueprint=_blueprint,
    switches=("INBOUND_TOKENS", "INBOUND_USERS", "URL"),
)
