"""The work that every contender does for one order: the steps, their HTTP calls, the ERP row, and the documents.

Two sizes. `four`: one ERP insert and four HTTP calls, the least that a naive user would write. `cloudsuite`: the
calls that the fleet's own CloudSuite plan makes, which reads before it writes and after the PUT.
"""

import json
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter

TIMEOUT = 10.0
"""Seconds; no call of a run takes that long."""
PATCHES: dict[str, dict[str, str]] = {
    "state": {"state": "processing"},
    "erp_order_number": {"erp_order_number": "SO-{order}"},
    "shipment_state": {"shipment_state": "sent"},
}
_PRODUCTS = (
    ("CHAIR-01", "Desk chair, black", 2.0, 189.5),
    ("DESK-160", "Sit-stand desk 160 x 80, oak", 1.0, 649.0),
    ("LAMP-07", "Desk lamp, aluminium", 2.5, 39.95),
)
_SERVER_OWNED = (
    "id",
    "key",
    "payment_status",
    "offline",
    "order_date",
    "create_date",
    "modified_date",
    "confirm_date",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded step. `calls`: "GET", "PUT" or "PATCH <field>", in order; none for the ERP insert."""

    name: str
    calls: tuple[str, ...] = ()

    @property
    def in_erp(self) -> bool:
        """Whether the step's effect is the row in the ERP's staging table."""
        return not self.calls


WORKS: dict[str, tuple[Step, ...]] = {
    "four": (
        Step("fetch", ("GET",)),
        Step("erp"),
        Step("state", ("PATCH state",)),
        Step("erp_order_number", ("PATCH erp_order_number",)),
        Step("lines", ("PUT",)),
    ),
    "cloudsuite": (
        Step("fetch", ("GET",)),
        Step("erp"),
        Step("state", ("GET", "PATCH state")),
        Step("erp_order_number", ("GET", "PATCH erp_order_number")),
        Step("lines", ("GET", "PUT", "GET")),
        Step("shipment", ("GET", "PATCH shipment_state")),
    ),
}


def calls_of(steps: tuple[Step, ...], orders: int) -> dict[str, int]:
    """How many calls of each kind that many orders make."""
    counts: dict[str, int] = {}
    for step in steps:
        for call in step.calls:
            counts[call] = counts.get(call, 0) + orders
    return counts


def document(order: int) -> dict[str, Any]:
    """An order as the webshop shows it: the detail object of the CloudSuite contract, section 3.2, three lines."""
    return {
        "id": order,
        "reference": f"CS{order}",
        "customer_order_number": "PO 2024/118",
        "erp_order_number": None,
        "state": "confirmed",
        "order_date": "2024-03-12",
        "create_date": "2024-03-12T09:44:42.733072",
        "modified_date": "2024-03-12T09:51:03.120554",
        "key": None,
        "payment_status": "paid",
        "shipment_state": None,
        "confirm_date": "2024-03-12T09:51:03.118001",
        "offline": False,
        "customer": 4711,
        "webshop": 1,
        "shipment_address": 9001,
        "invoice_address": 9002,
        "user": 512,
        "currency": "EUR",
        "description": "Please deliver at the back door",
        "requested_delivery_date": "2024-03-20",
        "paid_amount": None,
        "order_lines": [
            {
                "id": order * 10 + position,
                "product": {"key": key, "origin": "erp"},
                "description": description,
                "type": "line",
                "quantity": quantity,
                "unit_price": price,
                "erp_line_number": None,
            }
            for position, (key, description, quantity, price) in enumerate(_PRODUCTS)
        ],
    }


def replacement(order: int) -> dict[str, Any]:
    """The body of the PUT: the whole order with the ERP's line numbers, in its current state."""
    body = document(order) | {"state": "processing", "erp_order_number": f"SO-{order}"}
    for position, line in enumerate(body["order_lines"], start=1):
        line["erp_line_number"] = 10 * position
    return {name: value for name, value in body.items() if name not in _SERVER_OWNED}


def erp_row(order: int) -> dict[str, Any]:
    """The row for the ERP's staging table; made from the id alone, so that no contender has to read it back."""
    return {
        "external_reference": f"cloudsuite:default:{order}",
        "reference": f"CS{order}",
        "stage": "confirmed",
        "currency": "EUR",
        "total": 1127.875,
        "document": _ERP_DOCUMENT,
    }


_ERP_DOCUMENT = json.dumps(document(1), separators=(",", ":"))


class Caller:
    """The calls of a step, made as one writes them with requests: one session, checked answers, parsed reads."""

    def __init__(self, remote: str, *, threads: int = 1) -> None:
        self._orders = f"{remote}/api/order/"
        self._session = requests.Session()
        self._session.headers["Authorization"] = "Bearer example"
        self._session.mount("http://", HTTPAdapter(pool_maxsize=max(10, threads)))

    def make(self, step: Step, order: int) -> None:
        """Make the step's calls. Raises `requests.RequestException` for anything but success."""
        for call in step.calls:
            self._make(call, order)

    def _make(self, call: str, order: int) -> None:
        method, _, field = call.partition(" ")
        body = body_of(method, field, order)
        answer = self._session.request(method, f"{self._orders}{order}/", json=body, timeout=TIMEOUT)
        answer.raise_for_status()
        if method == "GET":
            answer.json()


def body_of(method: str, field: str, order: int) -> dict[str, Any] | None:
    """What a call sends: `method` and `field` are the words of `Step.calls`."""
    if method == "PUT":
        return replacement(order)
    if method == "PATCH":
        return {name: value.format(order=order) for name, value in PATCHES[field].items()}
    return None
