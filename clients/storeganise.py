"""Storeganise's admin API for valet orders. Contract: contracts/storeganise.md, whose traps are named here by number.

Answers to writes are not looked at: their form is nowhere published, and every write is read back by its caller.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from clients.base import Client, Query, StaticToken, segment
from clients.replies import Call

Json = dict[str, Any]

PAGE_SIZE = 100
LEAST_PAGE = 20
"""A page with fewer rows is the last one. A server may give fewer than we ask for, but hardly fewer than this."""
ROWS_READ_TWICE = 10
"""Rows by which pages overlap: one that changes while we read moves to the end, and the rest move up."""
SIDS_AT_ONCE = 50

_API = "/api/v1/admin"
_ORDERS = f"{_API}/valet-orders"
_ITEMS = f"{_API}/items"
_WRAPPERS = ("data", "results", "items")


def api_key(key: str) -> StaticToken:
    """The credentials of a server (2)."""
    return StaticToken("Authorization", f"ApiKey {key}")


def _rows(path: str, document: Any) -> list[Json]:
    """The objects of a list: bare, or in an object as one public client has seen it (3.2)."""
    if isinstance(document, dict):
        document = next((document[name] for name in _WRAPPERS if name in document), None)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise Call("GET", path).unanswered("200, but what came is not a list of objects")
    return document


class Storeganise(Client):
    """One tenant; `url` is that of its subdomain. Amounts are `Decimal`; times are texts in UTC."""

    def page_of(self, order_id: str) -> str:
        """Where staff see an order."""
        return f"{self._url}/admin/valet-orders/{segment(order_id)}"

    def order(self, order_id: str, *, items: bool = False) -> Json:
        """An order with the steps of its job, without which nobody can tell where it stands (trap 7). With `items`,
        what is on it is there, too: `{id, sid, state, location}` each. Raises `Refused` with status 404 if there is
        none, also for the id of a job (trap 2)."""
        include = "job,customFields,items" if items else "job,customFields"
        answer: Json = self.request("GET", f"{_ORDERS}/{segment(order_id)}", query={"include": include})
        return answer

    def orders(
        self, *, updated_after: str | None = None, include: str | None = None, limit: int = PAGE_SIZE
    ) -> Iterator[list[Json]]:
        """The pages of the list (4), each row once; each page is requested when it is asked for.

        `updated_after` is like 2024-01-01T00:00:00.000Z. With `include` at most small lists should be read."""
        seen: set[str] = set()
        offset = 0
        while True:
            query: Query = {"updatedAfter": updated_after, "limit": limit, "offset": offset, "include": include}
            rows = _rows(_ORDERS, self.request("GET", _ORDERS, query=query, expect=object))
            if not all(row.get("id") for row in rows):
                raise Call("GET", _ORDERS).unanswered("200, but what came is not a page of orders")
            new = {str(row["id"]): row for row in rows if str(row["id"]) not in seen}
            if new:
                yield list(new.values())
            if not new or len(rows) < min(LEAST_PAGE, limit):
                return
            seen |= new.keys()
            offset += max(len(rows) - ROWS_READ_TWICE, 1)

    def complete_step(self, order_id: str, step_id: str) -> None:
        """Complete one step of an order's job (3.3). There is no way back, and `order_start` makes the invoice."""
        path = f"{_ORDERS}/{segment(order_id)}/steps/{segment(step_id)}"
        self.request("PUT", path, document={"state": "completed"}, expect=None)

    def command_items(self, command: str, sids: Sequence[str], order_id: str, location: str | None = None) -> None:
        """Give items of an order a command (3.4): `valetOrder_add`, `_deliver`, `_collect`, or `_store`, which needs
        the one `location` of all (trap 13). A success may be a partial one: read the items (trap 12)."""
        data = {"valetOrderId": order_id} | ({} if location is None else {"location": location})
        self.request("PUT", _ITEMS, document={"command": command, "itemSids": list(sids), "data": data}, expect=None)

    def items(self, sids: Collection[str]) -> list[Json]:
        """Those of these items that there are: `{id, sid, state, itemTypeId, ownerId, valetOrderId, location}`."""
        found: list[Json] = []
        left = iter(sids)
        while batch := list(islice(left, SIDS_AT_ONCE)):
            document = self.request("GET", _ITEMS, query={"sids": ",".join(batch)}, expect=object)
            found += _rows(_ITEMS, document)
        return found

    def edit_order(self, order_id: str, fields: Mapping[str, Any]) -> None:
        """Change these fields of an order that is not completed (3.5). Unlike other systems' PUT it leaves the rest as
        it is (trap 8); but a list, as `charges`, is replaced whole."""
        self.request("PUT", f"{_ORDERS}/{segment(order_id)}", document=dict(fields), expect=None)

    def job(self, job_id: str) -> Json:
        """A job, which names its `valetOrderId`. Raises `Refused` with status 404 if there is none."""
        answer: Json = self.request("GET", f"{_API}/jobs/{segment(job_id)}")
        return answer
