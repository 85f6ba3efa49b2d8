"""The OpenAPI document of the partner's door, from the schemas that read its requests, and a page that shows it.

flask-smorest writes the document and serves it; it neither reads requests nor answers for errors, because the
contract says in which order what is checked, and how each answer looks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flask_smorest
from flask.blueprints import BlueprintSetupState
from flask_smorest import Blueprint
from flask_swagger_ui import get_swaggerui_blueprint
from marshmallow import Schema, fields

from schemas import partner as asked
from schemas import partner_answers as answers
from schemas.partner_answers import FailureAnswer, InvalidAnswer, good_schema

PAGE = "/docs"
DOCUMENT = f"{PAGE}/openapi.json"
VIEW = Callable[..., Any]
"""A view function."""

_DESCRIPTION = """\
Orders for delivery and assembly. Every answer is an envelope: `status` is `ok`, and `data` is what was asked for; or
`status` is `error`, and `name`, `type` and `message` say what is wrong. The header `token` carries a token that was
given to you, or that `POST /partner/auth/authorize` gives. Each token may make 10 requests a second."""


class _Api(flask_smorest.Api):  # type: ignore[misc]  # flask-smorest has no types
    """The document's own part of flask-smorest."""

    ERROR_SCHEMA = FailureAnswer

    def _register_error_handlers(self) -> None:
        """None of its own: they would answer for the whole application, and not in our envelope."""


def publish(routes: Blueprint) -> None:
    """Have the routes' document and its page served wherever the routes are registered."""

    def register(state: BlueprintSetupState) -> None:
        app = state.app
        app.config["PARTNER_OPENAPI_URL_PREFIX"] = PAGE
        api = _Api(
            app,
            config_prefix="PARTNER",
            spec_kwargs={
                "title": "Partner API",
                "version": "1",
                "openapi_version": "3.1.0",
                "info": {"description": _DESCRIPTION},
            },
        )
        api.spec.components.security_scheme("token", {"type": "apiKey", "in": "header", "name": "token"})
        routes.register_views_in_doc(api, app, api.spec, name=routes.name, parameters=None)
        # Its badge would send the document to a validator elsewhere.
        settings = {"app_name": "Partner API", "validatorUrl": None}
        app.register_blueprint(get_swaggerui_blueprint(PAGE, DOCUMENT, config=settings))

    routes.record_once(register)


def documented(routes: Blueprint, view: VIEW, about: Mapping[str, Any]) -> VIEW:
    """The view with what the document says of it."""
    view = routes.doc(**{"security": [{"token": []}]} | about["operation"])(view)
    schema, content_type = about["answer"]
    view = routes.alt_response(200, schema=schema, content_type=content_type, description="OK", success=True)(view)
    for status in about["failures"]:
        schema = InvalidAnswer if status == 422 else FailureAnswer
        view = routes.alt_response(status, schema=schema)(view)
    return view


def _about(
    summary: str, answer: type[Schema] | dict[str, Any], *failures: int, content_type: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "operation": {"summary": summary, **more},
        "answer": (answer, content_type),
        "failures": sorted({*failures, 503}),
    }


def _many(schema: type[Schema], name: str) -> type[Schema]:
    return good_schema(fields.List(fields.Nested(schema), required=True), name)


def _one(schema: type[Schema], name: str) -> type[Schema]:
    return good_schema(fields.Nested(schema, required=True), name)


def _query(schema: type[Schema]) -> dict[str, Any]:
    return {"in": "query", "schema": schema}


def _narrowed(name: str, description: str) -> dict[str, Any]:
    return {"in": "query", "name": name, "description": description, "schema": {"type": "string"}}


def _json(schema: type[Schema]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "The same key and the same body get the first answer again, for 30 days.",
    "schema": {"type": "string", "minLength": 1, "maxLength": asked.LONGEST_KEY},
}
_FILE = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
_IMAGE_ID = {"type": "string", "pattern": "^[0-9a-f]{24}$"}
_IMAGE = {"type": "string", "format": "binary"}
_SLOTS = fields.Dict(
    keys=fields.String(metadata={"format": "date"}), values=fields.Nested(answers.DayAnswer), required=True
)

_ORDER = _one(answers.OrderAnswer, "OrderEnvelope")
_ITEMS = _many(answers.ItemAnswer, "ItemsEnvelope")

ABOUT: dict[str, dict[str, Any]] = {
    "authorize": _about(
        "Log in",
        _one(answers.LoginAnswer, "LoginEnvelope"),
        401,
        413,
        415,
        422,
        429,
        security=[],
        description="Gives a new token. Five of one login are valid at a time; a sixth ends the oldest.",
        requestBody=_json(asked.LoginSchema),
    ),
    "upload": _about(
        "Upload an image",
        _many(answers.ImageAnswer, "ImageEnvelope"),
        401,
        413,
        415,
        422,
        429,
        description="One file, of any part name: JPEG, PNG or WebP, at most 10 MiB. It is kept as it is, and removed "
        "after 7 days if no order names it.",
        requestBody={"required": True, "content": {"multipart/form-data": {"schema": _FILE}}},
    ),
    "image": _about(
        "An image that you uploaded",
        _IMAGE,
        401,
        404,
        429,
        content_type="image/*",
        parameters=[{"in": "path", "name": "image_id", "required": True, "schema": _IMAGE_ID}],
    ),
    "items": _about(
        "List items",
        _ITEMS,
        401,
        422,
        429,
        parameters=[_query(asked.ItemQuery)],
    ),
    "find_items": _about(
        "Find items by a part of their name",
        _ITEMS,
        401,
        422,
        429,
        parameters=[_query(asked.ItemSearch)],
        description="At most 50.",
    ),
    "slots": _about(
        "Free slots",
        good_schema(_SLOTS, "SlotsEnvelope"),
        422,
        security=[],
        description="Today and the next 30 days, in the store's own time: 0712 is 7 to 12 o'clock. Reading reserves "
        "nothing.",
        parameters=[_query(asked.StoreQuery)],
    ),
    "create": _about(
        "Create an order",
        _ORDER,
        401,
        409,
        413,
        415,
        422,
        429,
        description="Answered once the order is kept. The same images with the same telephone number, items and "
        "times are taken for the same order, which is answered again.",
        parameters=[_KEY],
        requestBody=_json(asked.OrderSchema),
    ),
    "list_orders": _about(
        "List orders, newest first",
        _many(answers.OrderAnswer, "OrdersEnvelope"),
        401,
        422,
        429,
        parameters=[
            _query(asked.OrderQuery),
            {
                "in": "query",
                "name": "filter",
                "description": "As one JSON text, or in brackets.",
                "content": {"application/json": {"schema": asked.FilterSchema}},
            },
            _narrowed("filter[query]", "A number, or a part of title, names, telephone number or address details."),
            _narrowed("filter[store_ids][0]", "Only of this store; further ones in [1], [2] ..."),
            _narrowed("filter[filter][0]", "Only of this `_status` or `_substatus`; further ones in [1], [2] ..."),
        ],
    ),
    "order": _about(
        "One order",
        _ORDER,
        401,
        404,
        429,
        parameters=[{"in": "path", "name": "number", "required": True, "schema": {"type": "integer", "minimum": 0}}],
    ),
}
"""What the document says of each view."""
