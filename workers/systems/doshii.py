"""Doshii: its settings, and how its account and its webhook are built from them."""

from collections.abc import Sequence
from typing import Any

import tasks.doshii
from clients.doshii import Doshii, VenueToken
from tasks.base import Account
from tasks.doshii_order import PLAN, Options
from webhooks.doshii import Credentials
from webhooks.doshii import Doshii as Webhook
from workers.reading import AccountReader, AccountSettings
from workers.systems.base import Wiring


def _read(read: AccountReader) -> dict[str, Any]:
    key, token = read.text("WEBHOOK_KEY"), read.text("WEBHOOK_TOKEN")
    if key is not None and token is None:
        read.missing(f"{read.name('WEBHOOK_TOKEN')}: set it, too: the token registered with {read.name('WEBHOOK_KEY')}")
    currency = read.text("CURRENCY", "AUD") or ""
    if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
        read.missing(f"{read.name('CURRENCY')}: {currency!r} is not the code of a currency, as AUD")
    return {
        "vendor": read.needed("VENDOR", "the POS vendor's API name, from Doshii's dashboard"),
        "vendor_key": read.needed("VENDOR_KEY", "the POS vendor's key, from Doshii's dashboard"),
        "location_token": read.needed("LOCATION_TOKEN", "the venue's token, from Doshii's dashboard"),
        "location": read.text("LOCATION_ID"),
        "terminal": read.text("TERMINAL_ID"),
        "webhook_key": key,
        "webhook_token": token,
        "currency": currency.upper(),
        "open_item": read.text("OPEN_ITEM_PRODUCT"),
        "rejection_code": read.text("REJECTION_CODE"),
    }


def _build(settings: AccountSettings, **common: Any) -> Account:
    options = settings.options
    auth = VenueToken(options["vendor"], options["vendor_key"], options["location_token"], terminal=options["terminal"])
    client = Doshii(settings.url, auth=auth, timeout=settings.timeout, **common)
    own = Options(
        currency=options["currency"],
        open_item=options["open_item"],
        rejection_code=options["rejection_code"],
        location=options["location"],
    )
    return Account("doshii", settings.name, client, own, settings.poll_seconds)


def _receiver(accounts: Sequence[AccountSettings]) -> Webhook:
    """An account without a token listens to nobody: its orders come by the poll alone."""
    credentials = {
        account.name: Credentials(account.options["webhook_key"], account.options["webhook_token"])
        for account in accounts
        if account.options["webhook_token"] is not None
    }
    return Webhook(credentials, PLAN)


WIRING = Wiring(
    system=tasks.doshii.SYSTEM,
    poll_seconds=60.0,
    read=_read,
    build=_build,
    receiver=_receiver,
    timeout=60.0,  # as the vendor's own client has it (section 8)
)
