"""The documents of Doshii's POS API as the imitation keeps, checks and writes them; no state.

Kept in one form, whatever form they came in: cents and quantities as text. Sections are those of
`contracts/doshii.md`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any

from flask import Response

from sandbox.base import Json, json_response


class Problem(Exception):
    """An answer that is an error (section 8)."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers or {}

    def response(self, form: str) -> Response:
        """The answer itself, in the form that `Options.error_body` names."""
        name = HTTPStatus(self.status).phrase
        if form == "empty":
            return Response("", self.status, self.headers)
        if form == "html":
            return Response(f"<html><body><h1>{name}</h1></body></html>", self.status, self.headers)
        document: Json = {"message": self.message}
        if form == "v1":
            member = name.replace(" ", "")
            document = {"statusCode": self.status, "status": self.status, "name": name, member: True, **document}
        return json_response(document, self.status, self.headers)


TYPES = ("delivery", "pickup", "dinein")

# Fields

Cleaner = Callable[[Any], Any]
"""Returns the value to keep; raises `ValueError` with the words for the 400."""

_MONEY = frozenset(("unitPrice", "totalBeforeSurcounts", "totalAfterSurcounts", "price", "value", "amount", "tip"))
_MONEY_AS_NUMBERS = frozenset(("price", "value", "tip"))
_MEAL_PHASES = frozenset(
    (
        *("ordered", "delayed", "billed", "fulfilled", "delivering", "delivered"),
        *(f"{c}_{s}" for c in ("appetiser", "entree", "main", "dessert") for s in ("preparing", "prepared", "served")),
    )
)
_METHODS = frozenset(
    (
        *("cash", "visa", "mastercard", "amex", "diners", "giftcard", "loyalty", "crypto", "credit", "directdeposit"),
        *("cheque", "alipay", "wechatpay", "zip", "moto", "other", "eftpos", "paypal"),
    )
)
_PRODUCT_DEFAULTS: Json = {
    "description": "",
    "tags": [],
    "type": "single",
    "includedItems": [],
    "options": [],
    "surcounts": [],
}


def cents(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise ValueError(f"{value!r} is not a whole number of cents")
    return int(value)


def _quantity(value: Any) -> str:
    try:
        number = Decimal("NaN" if isinstance(value, bool) else str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number <= 0:
        raise ValueError(f"{value!r} is not a quantity")
    return format(number.normalize(), "f")


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a string is needed")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError("an object is needed")
    return value


def _objects(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise ValueError("an array is needed")
    return [_object(entry) for entry in value]


def _stamp_text(value: Any) -> str:
    datetime.fromisoformat(text(value))
    return str(value)


def _meal_phase(value: Any) -> str:
    if text(value).lower() not in _MEAL_PHASES:
        raise ValueError(f"{value!r} is not a meal phase")
    return str(value)


def _or_null(clean: Cleaner) -> Cleaner:
    return lambda value: None if value is None else clean(value)


def _surcount(entry: Json) -> Json:
    if entry.get("type", "absolute") not in ("absolute", "percentage"):
        raise ValueError("a surcount is absolute or a percentage")
    cleaned = {**entry, "value": str(cents(entry.get("value")))}
    if "amount" in entry:
        cleaned["amount"] = str(entry["amount"])  # percentage points may be a fraction
    return cleaned


def _option(entry: Json) -> Json:
    variants = [{**variant, "price": str(cents(variant.get("price", 0)))} for variant in entry.get("variants") or ()]
    return {**entry, "variants": variants}


def clean_product(entry: Json) -> Json:
    """One product, its cents and quantity checked; nothing is computed (section 3.2)."""
    cleaned = {**_PRODUCT_DEFAULTS, **{name: value for name, value in entry.items() if value is not None}}
    cleaned["quantity"] = _quantity(entry.get("quantity", 1))
    for name in _MONEY & cleaned.keys():
        cleaned[name] = str(cents(cleaned[name]))
    cleaned["surcounts"] = [_surcount(surcount) for surcount in _objects(cleaned["surcounts"])]
    cleaned["options"] = [_option(option) for option in _objects(cleaned["options"])]
    cleaned["includedItems"] = [_included(item) for item in _objects(cleaned["includedItems"])]
    return cleaned


def _included(entry: Json) -> Json:
    cleaned = {**entry, "quantity": _quantity(entry.get("quantity", 1))}
    if "unitPrice" in entry:
        cleaned["unitPrice"] = str(cents(entry["unitPrice"]))
    return {**cleaned, "options": [_option(option) for option in _objects(entry.get("options", []))]}


def _products(value: Any) -> list[Json]:
    products = [clean_product(entry) for entry in _objects(value)]
    for product in products:
        product.pop("status", None)  # an approved entry may still carry the one it had
    return products


def _unapproved(value: Any) -> list[Json]:
    products = [{"status": "pending", **clean_product(entry)} for entry in _objects(value)]
    if any(product["status"] not in ("pending", "cancelled", "voided") for product in products):
        raise ValueError("the status of an unapproved item is pending, cancelled or voided")
    return products


WRITABLE: dict[str, Cleaner] = {
    "manuallyProcessed": _boolean,
    "rejectionCode": text,
    "rejectionReason": text,
    "notes": _or_null(str),
    "phase": _or_null(text),
    "mealPhase": _or_null(_meal_phase),
    "type": _or_null(text),
    "requiredAt": _or_null(_stamp_text),
    "availableEta": _or_null(_stamp_text),
    "items": _products,
    "unapprovedItems": _unapproved,
    "surcounts": lambda value: [_surcount(entry) for entry in _objects(value)],
    "consumer": _or_null(_object),
}
"""What the POS may write to an order; everything else in a body is ignored."""

_PARTNERS: dict[str, Cleaner] = {
    **WRITABLE,
    "checkinId": _or_null(text),
    "checkin": _object,
    "taxes": lambda value: None if value is None else [_surcount(entry) for entry in _objects(value)],
    "memberId": _or_null(text),
    "posTerminalId": text,
}
"""What a partner's order may have besides."""

TRANSACTION: dict[str, Cleaner] = {
    "amount": lambda value: str(cents(value)),
    "tip": lambda value: str(cents(value)),
    "reference": _or_null(text),
    "invoice": _or_null(text),
    "method": _or_null(text),
    "acceptLess": _boolean,
    "partnerInitiated": _boolean,
    "prepaid": _boolean,
    "linkedTrxId": _or_null(text),
    "rejectionCode": text,
    "rejectionReason": text,
    "surcounts": WRITABLE["surcounts"],
    "verifyData": _object,
}


def clean(body: Json, cleaners: dict[str, Cleaner]) -> Json:
    """The known fields of `body`, cleaned. Raises `Problem` 400 naming the first bad one."""
    cleaned = {}
    for name in cleaners:
        if name in body:
            try:
                cleaned[name] = cleaners[name](body[name])
            except (ValueError, AttributeError) as error:
                raise Problem(400, f"{name}: {error}") from None
    return cleaned


def required(body: Json, *names: str) -> None:
    for name in names:
        if body.get(name) is None:
            raise Problem(400, f"{name} is required")


def priced(product: Json) -> Json:
    """A partner's product with the totals it did not say (section 3.2, Arithmetic)."""
    each = cents(product.get("unitPrice", 0))
    each += sum(cents(variant["price"]) for option in product["options"] for variant in option["variants"])
    before = int((Decimal(product["quantity"]) * each).quantize(Decimal(1), ROUND_HALF_UP))
    after = before + sum(cents(surcount["value"]) for surcount in product["surcounts"])
    totals = {"unitPrice": "0", "totalBeforeSurcounts": str(before), "totalAfterSurcounts": str(after)}
    return {**totals, **product}


def order_total(document: Json) -> int:
    """Cents: the lines after their surcounts, the order's own surcounts, exclusive taxes (section 3.2)."""
    taxes = [*(document.get("taxes") or ()), *(t for item in document["items"] for t in item.get("taxes") or ())]
    return (
        sum(cents(item["totalAfterSurcounts"]) for item in document["items"] if "totalAfterSurcounts" in item)
        + sum(cents(surcount["value"]) for surcount in document["surcounts"])
        + sum(cents(tax["value"]) for tax in taxes if tax.get("taxType") == "exclusive")
    )


def written(value: Any, quantities: str, money: str, name: str = "") -> Any:
    """A document as the switches `quantities` and `money` want it written."""
    if isinstance(value, dict):
        return {key: written(entry, quantities, money, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [written(entry, quantities, money) for entry in value]
    if name == "quantity":
        return _written_quantity(value, quantities)
    numbers = {"string": frozenset[str](), "number": _MONEY, "mixed": _MONEY_AS_NUMBERS}[money]
    return int(value) if name in numbers and re.fullmatch(r"-?\d+", str(value)) else value


def _written_quantity(text: str, form: str) -> Any:
    if form == "decimal":
        return f"{Decimal(text):.2f}"
    return int(text) if form == "integer" and text.isdigit() else text


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Rejection codes (section 3.7): only O1's text is public

_ORDER_CODES = {
    "O1": "Item unitPrice incorrect",
    "O2": "Item unavailable",
    "O3": "Option or variant invalid",
    "O4": "Total mismatch",
    "O5": "Venue closed",
    "O6": "Venue too busy",
    "O7": "requiredAt not possible",
    "O8": "Delivery not possible",
    "O9": "Consumer data missing",
    "O10": "Duplicate order",
    "O12": "Table unknown",
    "O13": "Other",
    "MAR1": "Marketplace 1",
    "MAR2": "Marketplace 2",
    "MAR3": "Marketplace 3",
    "POSSIE": "POS internal error",
}
_OTHER_CODES = {
    **{f"P{n}": ("transactions", f"Payment rejected, case {n}") for n in range(1, 8)},
    "POSISE": ("transactions", "POS internal error"),
    **{f"CH0{n}": ("checkins", f"Check-in rejected, case {n}") for n in range(1, 6)},
}
CODES = {**{code: ("orders", text) for code, text in _ORDER_CODES.items()}, **_OTHER_CODES}


def check_code(values: Json, entity: str, rejects: bool) -> None:
    """A code of that entity, and nothing of the kind unless something is rejected."""
    if not rejects and ("rejectionCode" in values or "rejectionReason" in values):
        raise Problem(400, "rejectionCode and rejectionReason go with a rejection only")
    code = values.get("rejectionCode")
    if code is not None and code != "POSISE" and CODES.get(code, ("", ""))[0] != entity:
        raise Problem(400, f"rejectionCode {code} is unknown")


ORDER_DEFAULTS: Json = {
    "phase": None,
    "mealPhase": None,
    "manuallyProcessed": False,
    "type": "pickup",
    "notes": None,
    "checkinId": None,
    "requiredAt": None,
    "availableEta": None,
    "items": [],
    "unapprovedItems": [],
    "surcounts": [],
    "consumer": None,
}
SPARE_ITEM: Json = {"posId": "124_STUK", "name": "Safety gloves", "quantity": "2", "unitPrice": "495"}
TRANSACTION_DEFAULTS: Json = {
    "reference": None,
    "invoice": None,
    "method": "visa",
    "amount": "0",
    "tip": "0",
    "acceptLess": False,
    "partnerInitiated": True,
    "prepaid": True,
    "linkedTrxId": None,
    "surcounts": [],
}


def check_method(values: Json) -> None:
    if values.get("method") not in (None, *_METHODS):
        raise Problem(400, f"method {values['method']} is unknown")


def partners_values(values: Json, cleaners: dict[str, Cleaner] = _PARTNERS, besides: tuple[str, ...] = ()) -> Json:
    """Cleaned fields of an order or payment as a partner makes it. Raises `ValueError`."""
    if unknown := values.keys() - cleaners.keys() - set(besides):
        raise ValueError(f"not a field to set: {', '.join(sorted(unknown))}")
    try:
        cleaned = clean(values, cleaners)
    except Problem as problem:
        raise ValueError(problem.message) from None
    for name in ("items", "unapprovedItems"):
        if name in cleaned:
            cleaned[name] = [priced(product) for product in cleaned[name]]
    return cleaned
