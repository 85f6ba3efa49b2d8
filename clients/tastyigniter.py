"""TastyIgniter's orders API. Contract: contracts/tastyigniter.md, whose sections are named here."""

import re
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from typing import Any

import requests

from clients.base import Client, segment
from clients.replies import UNREADABLE, Call, parsed, refusal, to_json, words_of
from orders.errors import Misconfigured, Refused

Json = dict[str, Any]

PAGE_SIZE = 100
_ORDERS = "/orders"
_SHOWN = ("message", "errors", "code", "status_code")
_SQL = re.compile(r"\((?:Connection: [^)]*?, )?SQL:.*", re.DOTALL)
_RIGHTS = (
    "the token needs the ability `*` or `orders:*` (`orders:read` and `orders:write` are not enough), and must be a "
    "member of staff's to change orders"
)
_OFFERED = (
    "the site does not offer this: TASTYIGNITER_URL must end with its API's prefix, such as https://shop.example/api, "
    "and the API's settings must allow the action"
)


class Absent(Refused):
    """No order has this id, or none that the token may see: nobody can tell which (6)."""


class Invalid(Refused):
    """A 422. `fields`: the names of those that are wrong."""

    def __init__(self, reason: str, fields: frozenset[str]) -> None:
        super().__init__(reason, status=422)
        self.fields = fields


class TastyIgniter(Client):
    """One token of one site; the address ends with the API's prefix. Answers are as they came, in whatever profile (1):
    `schemas.tastyigniter` unwraps them."""

    def newest_orders(self, **filters: str | int | None) -> Iterator[list[Json]]:
        """The pages of the list, rows with the highest id first, none twice. An old site may not know this sort and
        ignores it (3.1): look at the ids.

        Rows may be missing where one was deleted while we read (3.1): read them twice."""
        seen: set[str] = set()
        for page in count(1):
            query = {"sort": "order_id desc", "pageLimit": PAGE_SIZE, "page": page, **filters}
            document = self.request("GET", _ORDERS, query=query, expect=object)
            rows = _rows(document)
            fresh = {_id(row): row for row in rows if _id(row) not in seen}
            if fresh:
                yield list(fresh.values())
            if not fresh or (len(rows) < PAGE_SIZE and not _says_more(document, page)):
                return
            seen.update(fresh)

    def order(self, order_id: int | str, *, history: bool = False) -> Json:
        """One order, with the rows of its status history where the site has them. Raises `Absent`.

        Nothing else is ever included: an order without it may be answered with 500 (3.1)."""
        query = {"include": "status_history"} if history else None
        document: Json = self.request("GET", _item(order_id), query=query)
        return document

    def set_status(self, order_id: int | str, status_id: int, comment: str | None = None, **names: str | None) -> Json:
        """Set the status, and nothing else; what is answered is stale (3.2). Each call is a row in the history and may
        be a mail to the customer (5): read the order first. Raises `Absent`, `Invalid`.

        `names`: first_name, last_name and order_type, which releases of early 2021 demand."""
        fields: Json = {"status_id": status_id}
        if comment is not None:
            fields["status_comment"] = comment
        answer: Json = self.request("PATCH", _item(order_id), document={**fields, **names})
        return answer

    def delete_order(self, order_id: int | str) -> None:
        """Delete the order for good. Whatever the profile answers (1), a 2xx is a success. Raises `Absent`."""
        self.request("DELETE", _item(order_id), expect=None)

    def token_user(self) -> Json:
        """Whose token this is: the test of a connection (2)."""
        answer: Json = self.request("GET", "/token/user")
        return answer

    def statuses(self) -> list[Json]:
        """The catalogue of statuses, for which the token needs `status:*`, too (3)."""
        return [
            _fields(row) for row in _rows(self.request("GET", "/status", query={"pageLimit": PAGE_SIZE}, expect=object))
        ]

    def sort(self, call: Call, answer: requests.Response, expect: type | None) -> Any:
        """Branches by status and keys, never by words (6), and shows of an error what may be shown."""
        if 200 <= answer.status_code < 300:
            return super().sort(call, answer, expect)
        body = _body(answer)
        shown = _showable(answer, body)
        words = f"{call}: {answer.status_code} {words_of(shown)}"
        if answer.status_code == 404 and body.get("status_code") == 404:
            raise Absent(words, status=404)
        if answer.status_code in (404, 405):
            raise _not_offered(call, f"{words}: {_OFFERED}", answer.status_code)
        if answer.status_code == 403:
            raise Misconfigured(f"{words}: {_RIGHTS}", status=403)
        if answer.status_code == 422:
            errors = body.get("errors")
            raise Invalid(words, frozenset(errors) if isinstance(errors, dict) else frozenset())
        raise refusal(call, shown)


def _item(order_id: int | str) -> str:
    return f"{_ORDERS}/{segment(order_id)}"


def _not_offered(call: Call, reason: str, status: int) -> Exception:
    """Orders that cannot be read wait together; one that cannot be changed is a person's business, and others go on."""
    return Refused(reason, status=status) if call.write else Misconfigured(reason, status=status)


# -- pages ------------------------------------------------------------------------------------------------------------


def _rows(document: Any) -> list[Json]:
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Call("GET", _ORDERS).unanswered("200, but what came is not a list")
    return rows


def _id(row: Json) -> str:
    return str(row.get("id") or row.get("order_id"))


def _fields(row: Json) -> Json:
    attributes = row.get("attributes")
    return {"status_id": row.get("id"), **attributes} if isinstance(attributes, dict) else row


def _says_more(document: Any, page: int) -> bool:
    """Whether the list, where it tells, goes on though this page is short: a site may give less than was asked for."""
    meta = document.get("meta") if isinstance(document, dict) else None
    pagination = meta.get("pagination", meta) if isinstance(meta, dict) else None
    last = pagination.get("last_page", pagination.get("total_pages")) if isinstance(pagination, dict) else None
    return isinstance(last, int) and page < last


# -- errors -----------------------------------------------------------------------------------------------------------


def _body(answer: requests.Response) -> Json:
    try:
        body = parsed(answer)
    except UNREADABLE:
        return {}
    return body if isinstance(body, dict) else {}


def _showable(answer: requests.Response, body: Json) -> requests.Response:
    """The answer without `debug`, which is on by default and holds file names and traces, and without SQL (6)."""
    if not body:
        return answer
    shown = {name: body[name] for name in _SHOWN if name in body}
    if isinstance(shown.get("message"), str):
        shown["message"] = _SQL.sub("", shown["message"]).strip()
    copy = requests.Response()
    copy.status_code, copy.reason = answer.status_code, answer.reason
    copy.headers, copy.request = answer.headers, answer.request
    copy.raw = BytesIO(to_json(shown))
    return copy
