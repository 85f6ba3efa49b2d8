"""CloudSuite's webshop order API. Contract: contracts/cloudsuite.md, whose traps are named here by number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

from clients.base import Client, segment
from clients.replies import Call
from orders.errors import Refused

Json = dict[str, Any]

PAGE_SIZE = 100
_ORDERS = "/api/order/"


@dataclass(frozen=True, slots=True)
class Page:
    """List rows, which lack payment, lines and webshop (trap 6), and how many the server has under the filter."""

    rows: list[Json]
    count: int


def _item(order_id: int | str) -> str:
    """With the slash: without it a write is answered with a redirect, and lost (trap 13)."""
    return f"{_ORDERS}{segment(order_id)}/"


class CloudSuite(Client):
    """One tenant. Amounts and quantities are `Decimal`, or texts; times are texts without a zone (trap 9)."""

    def orders(self, **filters: str | int | None) -> Iterator[Page]:
        """The pages of the list under filters as `state`, `confirm_date__gte`, `webshop`, `offline`; section 3.1.

        Read them all before changing an order that is on them: the filtered list would shrink under the paging
        (trap 4). A filter that the server does not know, it ignores: compare the rows (trap 7)."""
        for document in self.pages(_ORDERS, {"limit": PAGE_SIZE, **filters}, lambda page: page.get("next")):
            rows, count = document.get("results"), document.get("count")
            if not isinstance(rows, list) or not isinstance(count, int) or (document.get("next") and not rows):
                raise Call("GET", _ORDERS).unanswered("200, but what came is not a page of orders")
            yield Page(rows, count)

    def find_by_reference(self, reference: str, webshop: int | None = None) -> list[Json]:
        """The rows of that reference, none, one or, across webshops, many (trap 7)."""
        pages = self.orders(reference=reference, webshop=webshop)
        return [row for page in pages for row in page.rows if row.get("reference") == reference]

    def order(self, order_id: int | str) -> Json:
        """The whole order. Raises `Refused` with status 404 if there is none."""
        return self._document("GET", _item(order_id))

    def order_by_key(self, key: str) -> Json:
        """The whole order with the external key given when it was posted. Raises as `order`."""
        return self._document("GET", f"{_ORDERS}ext:{quote(key, safe='')}/")

    def patch_order(self, order_id: int | str, **fields: Any) -> Json:
        """Set `state`, `erp_order_number` or `shipment_state`; never `order_lines`, which is not documented."""
        return self._document("PATCH", _item(order_id), fields)

    def put_order(self, order_id: int | str, document: Json) -> Json:
        """Replace the whole order; what is left out is lost (trap 2).

        For an id that the server does not know this makes a new order (trap 3): the caller must have just read the
        order, and send what was read, in its present state (trap 1). Raises `Refused` if one was made."""
        return self._document("PUT", _item(order_id), document)

    def post_order(self, document: Json) -> Json:
        """Create an offline order. Without a `key` a lost answer cannot be recovered from: always send one."""
        return self._document("POST", _ORDERS, document)

    def post_delivery(self, xml: bytes | str, *, shop: int | None, user: int | None) -> None:
        """Send a DESADV message; `shop` and `user` are the tenant's numbers (trap 12).

        The first one with a `DesadvNumber` is stored, a second `Refused`; there is no call to read them back."""
        self.request(
            "POST",
            "/proxy/des_adv_xml/delivery/",
            query={"shop": shop, "user": user},
            content=xml if isinstance(xml, bytes) else xml.encode(),
            content_type="application/xml",
            expect=None,
        )

    def _document(self, method: str, path: str, document: Json | None = None) -> Json:
        answer: Json = self.request(method, path, document=document)
        return answer

    def sort(self, call: Call, answer: requests.Response, expect: type | None) -> Any:
        """A 201 after a PUT is no success (trap 3)."""
        document = super().sort(call, answer, expect)
        if call.method == "PUT" and answer.status_code == 201:
            made = document.get("id")
            raise Refused(f"{call}: 201, the server did not know the order and made a new one, {made}", status=201)
        return document
