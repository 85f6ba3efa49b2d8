"""Storeganise: its settings, and how its account and its receiver are built from them."""

from collections.abc import Sequence
from typing import Any

import tasks.storeganise
import webhooks.storeganise
from clients.storeganise import Storeganise, api_key
from tasks.base import Account
from tasks.storeganise_order import Options
from workers.reading import AccountReader, AccountSettings
from workers.systems.base import Wiring


def _read(read: AccountReader) -> dict[str, Any]:
    return {
        "api_key": read.needed("API_KEY", "a key with the role admin, made under Settings, Developer"),
        "webhook_secret": read.text("WEBHOOK_SECRET"),
        "auto_approve": read.flag("AUTO_APPROVE"),
    }


def _build(settings: AccountSettings, **common: Any) -> Account:
    auth = api_key(settings.options["api_key"])
    client = Storeganise(settings.url, auth=auth, timeout=settings.timeout, **common)
    options = Options(auto_approve=settings.options["auto_approve"])
    return Account("storeganise", settings.name, client, options, settings.poll_seconds)


def _receiver(accounts: Sequence[AccountSettings]) -> webhooks.storeganise.Storeganise:
    return webhooks.storeganise.Storeganise({one.name: one.options["webhook_secret"] for one in accounts})


WIRING = Wiring(system=tasks.storeganise.SYSTEM, poll_seconds=600.0, read=_read, build=_build, receiver=_receiver)
