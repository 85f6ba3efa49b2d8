"""Doshii's POS API v3, as the POS of one venue. Contract: contracts/doshii.md, whose endpoints (E1 to E15) and traps
are named here by number."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clients.base import Client, segment
from clients.replies import Call
from orders.errors import Misconfigured

Json = dict[str, Any]

PAGE_SIZE = 250
LONGEST = 180.0
"""Seconds that the vendor's own client waits for the answer to a payment, where it waits 60 for others (section 8)."""
_UNLINKED = "/unlinked_orders"
_ORDERS = "/orders"
_PAYMENTS = "/transactions"


class VenueToken:
    """How Doshii knows a venue's POS: the vendor's name, and a JWT for each request, which is good for ten minutes.

    `clock` gives seconds since 1970; Doshii's own may differ by those ten minutes (trap 1). `terminal`: the hashed id
    of a registered POS terminal, if there is one."""

    def __init__(
        self,
        vendor: str,
        vendor_key: str,
        location_token: str,
        *,
        terminal: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._named = {"vendor": vendor} | ({} if terminal is None else {"doshii-terminal-id": terminal})
        self._key = vendor_key.encode()
        self._location_token = location_token
        self._clock = clock

    def headers(self) -> Mapping[str, str]:
        """See `clients.base.Auth`: signed now."""
        for name, value in self._named.items():
            if not (value.isascii() and value.isprintable()):
                raise Misconfigured(f"the credentials for the header {name} hold characters that no header may have")
        claims = {"locationToken": self._location_token, "timestamp": int(self._clock())}
        # First of all the token: in messages each is blotted out in this order, and the others may be a part of it.
        return {"Authorization": f"Bearer {_jwt(claims, self._key)}", **self._named}

    def renewed(self, refused: Mapping[str, str]) -> Mapping[str, str]:
        """See `clients.base.Auth`: signed anew, once."""
        return self.headers()


def _jwt(claims: Json, key: bytes) -> str:
    """HS256 (section 2)."""
    head = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
    return f"{head}.{_base64(hmac.new(key, head.encode(), hashlib.sha256).digest())}"


def _part(document: Json) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Doshii(Client):
    """One venue. Ids in paths: Doshii's own before an order is linked, ours after that (trap 7).

    Amounts come as cents, in texts or numbers, quantities as both, too (traps 3, 4). Every write needs the `version`
    of the last read in its body; a stale one is `Refused` with status 409, and nothing was changed (section 5)."""

    def unlinked_orders(self) -> list[Json]:
        """E1: rows of orders that have no POS id yet, in any status (trap 20)."""
        return self._list(_UNLINKED)

    def unlinked_order(self, doshii_id: str) -> Json:
        """E2. Raises `Refused` with status 404 for an order that is linked, or unknown."""
        return self._document("GET", f"{_UNLINKED}/{segment(doshii_id)}")

    def put_unlinked_order(self, doshii_id: str, body: Json) -> Json:
        """E3: link and accept, or reject. The body is bare (trap 2)."""
        return self._document("PUT", f"{_UNLINKED}/{segment(doshii_id)}", body)

    def unlinked_transactions(self, doshii_id: str) -> list[Json]:
        """E4: the payments of an unlinked order."""
        return self._list(f"{_UNLINKED}/{segment(doshii_id)}/transactions")

    def orders(self, *, updated_from: int) -> Iterator[Json]:
        """E6: rows of linked orders in any status that changed since then (epoch seconds), page after page.

        The list has no end but an empty page, and shifts while it is read (section 3.5): a row may come twice.
        Raises `TryLater` when a page comes again."""
        offset, before = 0, None
        while True:
            query = {"updatedFrom": updated_from, "offset": offset, "limit": PAGE_SIZE}
            page: list[Json] = self.request("GET", _ORDERS, query=query, expect=list)
            if not page:
                return
            if page == before:
                raise Call("GET", _ORDERS).unanswered("the next page is the same as the one before")
            yield from page
            offset, before = offset + len(page), page

    def order(self, pos_id: str) -> Json:
        """E7. Raises `Refused` with status 404 if no order is linked to this id."""
        return self._document("GET", f"{_ORDERS}/{segment(pos_id)}")

    def put_order(self, pos_id: str, body: Json) -> Json:
        """E8: change a linked order.

        For an id that is not linked this makes a second order (trap 13): the caller must have just read it by `order`.
        The body is wrapped (trap 2)."""
        return self._document("PUT", f"{_ORDERS}/{segment(pos_id)}", {"order": body})

    def transactions(self, pos_id: str) -> list[Json]:
        """E9: the payments of a linked order."""
        return self._list(f"{_ORDERS}/{segment(pos_id)}/transactions")

    def put_transaction(self, transaction_id: str, body: Json) -> Json:
        """E11: go ahead with a payment, or reject it."""
        return self._document("PUT", f"{_PAYMENTS}/{segment(transaction_id)}", body)

    def rejection_codes(self) -> list[Json]:
        """E12: rows of `code`, `description` and `entity`. (The seed's prose spells the path otherwise.)"""
        return self._list("/rejection_codes")

    def location(self) -> Json:
        """E14: `id` and `name` of our venue."""
        return self._document("GET", "/location")

    def patience(self, call: Call) -> float:
        """See `Client`: the answer to a payment may take three times as long as others (section 8)."""
        if not (call.write and call.path.startswith(_PAYMENTS)):
            return self._timeout
        return max(self._timeout, min(3 * self._timeout, LONGEST))

    def _document(self, method: str, path: str, document: Json | None = None) -> Json:
        answer: Json = self.request(method, path, document=document)
        return answer

    def _list(self, path: str) -> list[Json]:
        answer: list[Json] = self.request("GET", path, expect=list)
        return answer
