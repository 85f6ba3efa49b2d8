"""The partner contract as we offer it: what we answer. Contract: contracts/partner.md, sections 2, 3, 5.1 and 6."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields, validate

from orders.inbound import Listed
from orders.states import State
from schemas.partner import SLOTS, OrderRequest
from schemas.partner_fields import Problem

Json = dict[str, Any]


# -- envelopes --------------------------------------------------------------------------------------------------------


def good(data: Any) -> Json:
    """The envelope of everything that worked; always HTTP 200 (5.1)."""
    return {"status": "ok", "statusCode": 200, "data": data}


@dataclass(frozen=True, slots=True)
class Failure:
    """One way to fail (6)."""

    status: int
    name: str
    type: str
    message: str

    def envelope(self, data: Any = None) -> Json:
        return {
            "name": self.name,
            "message": self.message,
            "code": self.status,
            "type": self.type,
            "statusCode": self.status,
            "status": "error",
            "data": data,
        }


UNAUTHORIZED = Failure(401, "UnAuthorizedError", "NO_RIGHTS", "Unauthorized")
INVALID = Failure(422, "ValidationError", "VALIDATION_ERROR", "Validation failed")
NOT_FOUND = Failure(404, "NotFoundError", "NOT_FOUND", "Not found")
NOT_ALLOWED = Failure(405, "MethodNotAllowedError", "METHOD_NOT_ALLOWED", "Method not allowed")
IN_PROGRESS = Failure(409, "ConflictError", "IN_PROGRESS", "A request with this Idempotency-Key is being processed")
TOO_LARGE = Failure(413, "PayloadTooLargeError", "PAYLOAD_TOO_LARGE", "Too large")
WRONG_TYPE = Failure(415, "UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type")
TOO_MANY = Failure(429, "TooManyRequestsError", "RATE_LIMIT", "Too many requests")
BROKEN = Failure(500, "ServiceError", "INTERNAL", "Internal error")
AWAY = Failure(503, "ServiceError", "INTERNAL", "Not available at the moment")

FAILURES = {
    failure.status: failure
    for failure in (
        UNAUTHORIZED,
        INVALID,
        NOT_FOUND,
        NOT_ALLOWED,
        IN_PROGRESS,
        TOO_LARGE,
        WRONG_TYPE,
        TOO_MANY,
        BROKEN,
        AWAY,
    )
}


def failure_of(status: int, message: str) -> Failure:
    """The way to fail that an HTTP status means; one that the contract does not name gets a name of its own."""
    return FAILURES.get(status) or Failure(status, "RequestError", "REQUEST", message)


def invalid(problems: list[Problem]) -> Json:
    """The 422 with everything that is wrong (5.1)."""
    return INVALID.envelope([problem.to_json() for problem in problems])


# -- orders -----------------------------------------------------------------------------------------------------------


def order_answer(request: OrderRequest, number: int, at: datetime, partner: str, store_title: str) -> Json:
    """The `data` of a new order (2.2), which is also its row in lists as long as nothing happened."""
    return {
        "_id": number,
        "title": order_title(store_title, number),
        "_status": "open",
        "_substatus": "open" if request.instock else "not_in_stock",
        "partner": partner,
        "partner_details": {
            "instock": request.instock,
            "store_id": request.store_id,
            "store_title": store_title,
        },
        "created_at": f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
    }


def order_title(store_title: str, number: int) -> str:
    return f"{store_title} #{number}"


def order_row(listed: Listed) -> Json:
    """An order as it stands now.

    A booking made for it knows best: its words are shown as they are. Else the ERP's word counts: shipped is being
    worked on, completed is done. Until then the order is open, as it was answered. The contract has no status for a
    cancelled order: `_status` stays open, and `_substatus`, whose list is not closed, says so (3)."""
    return listed.answer | _shown(listed)


def _shown(listed: Listed) -> Json:
    facts = listed.facts
    if facts.get("status"):
        return {"_status": facts["status"], "_substatus": facts.get("substatus") or facts["status"]}
    if listed.state in (State.CANCELLED, State.IGNORED):
        return {"_substatus": "cancelled"}
    if "completed" in listed.signals:
        return {"_status": "done", "_substatus": "completed"}
    if "shipped" in listed.signals:
        return {"_status": "in_work", "_substatus": "in_work"}
    return {}


# -- the rest ---------------------------------------------------------------------------------------------------------


def login_user(number: int, login: str, partner: str, stores: Mapping[str, str]) -> Json:
    """Who has logged in (1)."""
    titles = [{"store_id": store, "store_title": title} for store, title in stores.items()]
    return {"_id": number, "name": login, "partner": partner, "stores": titles}


def item_row(number: int, name: str) -> Json:
    """An item of the catalogue (2.5). Each can be had delivered and assembled: no setting says otherwise."""
    return {"id": number, "name": name, "delivery": True, "assembly": True}


# -- the same for the OpenAPI document --------------------------------------------------------------------------------


def _text(**more: Any) -> fields.Field[Any]:
    return fields.String(required=True, **more)


class StoreAnswer(Schema):
    instock = fields.Boolean(required=True)
    store_id = _text()
    store_title = _text()


class OrderAnswer(Schema):
    _id = fields.Integer(required=True, metadata={"minimum": 0, "description": "Unique; counts from 0."})
    title = _text()
    _status = _text(metadata={"description": "open, in_work, completed or done."})
    _substatus = _text(metadata={"description": "More values may come: take an unknown one for text."})
    partner = _text()
    partner_details = fields.Nested(StoreAnswer, required=True)
    created_at = _text(metadata={"format": "date-time"})


class StoreTitle(Schema):
    store_id = _text()
    store_title = _text()


class LoginUser(Schema):
    _id = fields.Integer(required=True)
    name = _text()
    partner = _text()
    stores = fields.List(fields.Nested(StoreTitle), required=True)


class LoginAnswer(Schema):
    token = _text()
    user = fields.Nested(LoginUser, required=True)


class ImageAnswer(Schema):
    id = _text(validate=validate.Regexp("^[0-9a-f]{24}$"))
    url = _text(metadata={"format": "uri"})
    mimetype = _text(validate=validate.OneOf(("image/jpeg", "image/png", "image/webp")))


class ItemAnswer(Schema):
    id = fields.Integer(required=True)
    name = _text()
    delivery = fields.Boolean(required=True)
    assembly = fields.Boolean(required=True)


DayAnswer = Schema.from_dict({slot: fields.Boolean(required=True) for slot in SLOTS}, name="DayAnswer")


def good_schema(data: fields.Field[Any], name: str) -> type[Schema]:
    """The envelope around an answer's `data`."""
    parts = {"status": _text(validate=validate.Equal("ok")), "statusCode": fields.Integer(required=True), "data": data}
    return Schema.from_dict(parts, name=name)


class FailureAnswer(Schema):
    name = _text()
    message = _text()
    code = fields.Integer(required=True)
    type = _text()
    statusCode = fields.Integer(required=True)  # noqa: N815 - the contract's word
    status = _text(validate=validate.Equal("error"))
    data: fields.Field[Any] = fields.Raw(required=True, allow_none=True)


class ProblemAnswer(Schema):
    type = _text()
    field = _text()
    message = _text()


class InvalidAnswer(FailureAnswer):
    data: fields.Field[Any] = fields.List(fields.Nested(ProblemAnswer), required=True)
