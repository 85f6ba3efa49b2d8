"""CloudSuite: its settings, and how its account is built from them."""

from typing import Any

import tasks.cloudsuite
from clients.base import Auth, OAuthClientCredentials, StaticToken
from clients.cloudsuite import CloudSuite
from tasks.base import Account
from tasks.cloudsuite_order import Options
from workers.reading import AccountReader, AccountSettings
from workers.systems.base import Wiring

TOKEN_URL = "https://id.cloudsuite.io/realms/CloudSuite/protocol/openid-connect/token"


def _read(read: AccountReader) -> dict[str, Any]:
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
        "token_url": read.url("TOKEN_URL", TOKEN_URL),
        "webshop": read.whole("WEBSHOP"),
        "payment_none": read.choice("PAYMENT_NONE", ("hold", "process")),
        "delivery": delivery,
        "offline": read.choice("OFFLINE", ("ignore", "ship")),
        "shop": shop,
        "user": user,
    }


def _build(settings: AccountSettings, **common: Any) -> Account:
    options = dict(settings.options)
    token, client_id = options.pop("token"), options.pop("client_id")
    secret, token_url = options.pop("client_secret"), options.pop("token_url")
    auth: Auth = (
        StaticToken("Authorization", f"Token {token}")
        if token is not None
        else OAuthClientCredentials(token_url, client_id, secret, scope="openid")
    )
    client = CloudSuite(settings.url, auth=auth, timeout=settings.timeout, **common)
    return Account("cloudsuite", settings.name, client, Options(**options), settings.poll_seconds)


WIRING = Wiring(system=tasks.cloudsuite.SYSTEM, poll_seconds=60.0, read=_read, build=_build)
