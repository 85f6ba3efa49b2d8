"""The partner contract, offered by us: HTTP, and nothing else. Contract: contracts/partner.md, section 5.

What is checked, in this order: token (401) · its rate (429) · size and type (413, 415) · JSON · fields · what they
refer to · whether it came before · slots. An order is answered once it is committed. All answers, those of paths that
are not there too, are the contract's envelopes. Who may come in is in `partner_access.py`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

import structlog
from flask import Response, current_app, jsonify, request, url_for
from flask.blueprints import BlueprintSetupState
from flask_smorest import Blueprint
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from orders.inbound import Accepted, Image, ImageReused, KeyReused, Listed, Made, Offer, UnderWay
from orders.outcomes import Planned
from schemas import partner as schema
from schemas import partner_answers as answers
from schemas.partner import OrderRequest, Wish
from schemas.partner_answers import Failure, good, invalid
from schemas.partner_fields import Part, Problem, Wrong, read
from webhooks.partner_access import Access, Meters, Shop, Tokens, Visitor
from webhooks.partner_docs import ABOUT, documented, publish

PREFIX = "/partner"
MOST_JSON = 64 << 10
MOST_IMAGE = 10 << 20
_AROUND_IMAGE = 16 << 10
"""What a multipart body may have besides the image."""
MOST_FOUND = 50
_MOST_NUMBER = (1 << 63) - 1
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_MAGIC = (
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
)

log = structlog.get_logger(__name__)


class Door(Tokens, Protocol):
    """What is behind the door: the ledger, in words of ours. Every method may raise what says that it is away."""

    def now(self) -> datetime: ...

    def add_image(self, sender: str, mimetype: str, content: bytes) -> str: ...

    def image(self, sender: str, image_id: str) -> Image | None: ...

    def known_images(self, sender: str, image_ids: Sequence[str]) -> set[str]: ...

    def accepted_before(self, sender: str, key: str | None, same: str) -> Accepted | None: ...

    def known(self, offer: Offer) -> Accepted | None: ...

    def accept(self, offer: Offer, plan: Sequence[Planned]) -> Accepted: ...

    def order(self, sender: str, number: int) -> Listed | None: ...

    def orders(self, sender: str, query: str = "", places: Sequence[str] = (), skip: int = 0) -> Iterator[Listed]: ...


class Failed(Exception):
    """The request ends here, with this answer."""

    def __init__(self, failure: Failure, retry_after: int | None = None) -> None:
        super().__init__(failure.name)
        self.failure = failure
        self.retry_after = retry_after


def blueprint(
    shops: Sequence[Shop],
    door: Door,
    ring: Callable[[Sequence[int]], None],
    *,
    away: type[Exception],
    meters: Meters | None = None,
) -> Blueprint:
    """Everything under `/partner/`, and its document under `/docs`.

    `ring` is told the ledger's ids of new orders, after the commit. `away`: what `door` raises when it cannot
    answer."""
    routes = Blueprint("partner", __name__, url_prefix=PREFIX, description="Orders of partners.")
    views = _Views(shops, door, ring, meters or Meters())
    for rule, method, view in views.all():
        shown = documented(routes, view, ABOUT[view.__name__])
        routes.add_url_rule(rule, view.__name__, shown, methods=[method])
    publish(routes)
    routes.record(_catch_the_rest)
    routes.register_error_handler(Failed, _failed)
    routes.register_error_handler(Wrong, _wrong)
    routes.register_error_handler(HTTPException, _http)
    routes.register_error_handler(away, _away)
    return routes


# -- errors -----------------------------------------------------------------------------------------------------------


def _envelope(failure: Failure, body: Mapping[str, Any] | None = None) -> Response:
    answer = jsonify(failure.envelope() if body is None else body)
    answer.status_code = failure.status
    return answer


def _failed(error: Failed) -> Response:
    answer = _envelope(error.failure)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def _wrong(error: Wrong) -> Response:
    return _envelope(answers.INVALID, invalid(error.problems))


def _http(error: HTTPException) -> Response:
    """What Flask refuses: too large, no such path, our own bug."""
    answer = _envelope(answers.failure_of(error.code or 500, error.name))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(error.valid_methods)
    return answer


def _away(error: Exception) -> Response:
    log.error("a partner's request was not kept", action="partner_away", reason=type(error).__name__)
    return _failed(Failed(answers.AWAY, retry_after=2))


def _catch_the_rest(state: BlueprintSetupState) -> None:
    """A rule for whatever no other rule takes, so that those answers are envelopes too; not a part of the document."""
    for rule in ("/", "/<path:path>"):
        state.add_url_rule(
            rule, "nothing", _nothing, methods=_METHODS, provide_automatic_options=False, strict_slashes=False
        )


def _nothing(path: str = "") -> Response:
    """No such path, or not by this method."""
    adapter = current_app.create_url_adapter(request)
    rules = [adapter.match(method=method)[0] for method in _METHODS] if adapter is not None else []
    allowed = [method for method, rule in zip(_METHODS, rules, strict=False) if not rule.endswith(".nothing")]
    raise MethodNotAllowed(valid_methods=allowed) if allowed else NotFound()


# -- bodies and queries -----------------------------------------------------------------------------------------------


def _json_body() -> tuple[str, Any, str]:
    """The body's text, what it says, and its digest. Raises `Wrong` for what is no JSON."""
    request.max_content_length = MOST_JSON
    raw = request.get_data(cache=False)
    if not request.is_json:
        raise Failed(answers.WRONG_TYPE)
    try:
        text = raw.decode()
        document = json.loads(text, parse_constant=_no_constant)
        return text, document, schema.same_print(document)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, NaN, a number of a thousand digits, nested too deep
        raise Wrong([Problem("body", "object")]) from None


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _query(query: Part) -> dict[str, Any]:
    return read(query, request.args.to_dict())


def _filter() -> dict[str, Any]:
    """The filter of a list: one JSON text, or brackets as in `filter[store_ids][0]=st-1` (2.3)."""
    text = request.args.get("filter")
    try:
        asked = _in_brackets(request.args.items(multi=True)) if text is None else json.loads(text)
        return schema.read_filter(asked)
    except (ValueError, RecursionError):
        raise Wrong([Problem("filter", "object")]) from None
    except Wrong as wrong:
        raise Wrong([_within("filter", problem) for problem in wrong.problems]) from None


def _within(above: str, problem: Problem) -> Problem:
    return Problem(above if problem.field == "body" else f"{above}.{problem.field}", problem.type)


_BRACKETS = re.compile(r"filter\[(query|store_ids|filter)\](\[[0-9]*\])?")


def _in_brackets(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name, value in pairs:
        found = _BRACKETS.fullmatch(name)
        if found is None:
            continue
        if found[1] == "query":
            asked["query"] = value
        else:
            asked.setdefault(found[1], []).append(value)
    return asked


def _mimetype(content: bytes) -> str:
    """By its first bytes: what the sender calls it proves nothing."""
    for mimetype, magic in _MAGIC:
        if magic.match(content):
            return mimetype
    raise Failed(answers.WRONG_TYPE)


def _uploaded() -> bytes:
    """The one file of a multipart body."""
    request.max_content_length = MOST_IMAGE + _AROUND_IMAGE
    if request.mimetype != "multipart/form-data":
        raise Failed(answers.WRONG_TYPE)
    files = [file for _, file in request.files.items(multi=True)]
    if len(files) != 1:
        raise Wrong([Problem("file", "arrayMax" if files else "required")])
    content: bytes = files[0].read(MOST_IMAGE + 1)
    if len(content) > MOST_IMAGE:
        raise Failed(answers.TOO_LARGE)
    return content


# -- views ------------------------------------------------------------------------------------------------------------


class _Views:
    def __init__(
        self, shops: Sequence[Shop], door: Door, ring: Callable[[Sequence[int]], None], meters: Meters
    ) -> None:
        self._access = Access(shops, door)
        self._logins = frozenset(self._access.logins())
        self._stores = {store: shop for shop in reversed(shops) for store in shop.stores}
        self._door = door
        self._ring = ring
        self._meters = meters

    def all(self) -> Iterator[tuple[str, str, Callable[..., Response]]]:
        """Every view with its rule and method."""
        yield "/auth/authorize", "POST", self.authorize
        yield "/image/upload", "POST", self.upload
        yield "/image/<image_id>", "GET", self.image
        yield "/item/list", "GET", self.items
        yield "/item/find", "GET", self.find_items
        yield "/masters/slots", "GET", self.slots
        yield "/order/create", "POST", self.create
        yield "/order/list", "GET", self.list_orders
        yield "/order/<int:number>", "GET", self.order

    def _visitor(self) -> Visitor:
        visitor = self._access.visitor(request.headers.get("token"))
        if visitor is None:
            raise Failed(answers.UNAUTHORIZED)
        self._count(visitor.meter)
        return visitor

    def _count(self, meter: str) -> None:
        wait = self._meters.wait(meter)
        if wait:
            raise Failed(answers.TOO_MANY, retry_after=wait)

    def authorize(self) -> Response:
        _, document, _ = _json_body()
        asked = read(schema.LoginSchema(), document)
        if asked["login"] in self._logins:  # whoever tries passwords is slowed down, a made-up name costs no memory
            self._count(f"login:{asked['login']}")
        known = self._access.user(asked["login"], asked["password"])
        if known is None:
            raise Failed(answers.UNAUTHORIZED)
        shop, user = known
        token = self._access.new_token(shop, user)
        who = answers.login_user(shop.users.index(user), user.login, user.partner, shop.stores)
        return jsonify(good({"token": token, "user": who}))

    def upload(self) -> Response:
        visitor = self._visitor()
        content = _uploaded()
        mimetype = _mimetype(content)
        image_id = self._door.add_image(visitor.partner, mimetype, content)
        url = url_for("partner.image", image_id=image_id, _external=True)
        return jsonify(good([{"id": image_id, "url": url, "mimetype": mimetype}]))

    def image(self, image_id: str) -> Response:
        image = self._door.image(self._visitor().partner, image_id)
        if image is None:
            raise Failed(answers.NOT_FOUND)
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        return Response(image.content, mimetype=image.mimetype, headers=headers)

    def items(self) -> Response:
        shop = self._visitor().shop
        asked = _query(schema.ItemQuery())
        rows = self._items(shop, asked.get("store_id"))
        return jsonify(good(rows[asked["skip"] : asked["skip"] + asked["limit"]]))

    def find_items(self) -> Response:
        shop = self._visitor().shop
        asked = _query(schema.ItemSearch())
        wanted = asked["name"].casefold()
        rows = [row for row in self._items(shop, asked.get("store_id")) if wanted in row["name"].casefold()]
        return jsonify(good(rows[:MOST_FOUND]))

    def _items(self, shop: Shop, store: str | None) -> list[dict[str, Any]]:
        if store is not None and store not in shop.stores:
            raise Wrong([Problem("store_id", "notFound")])
        return [answers.item_row(number, name) for number, name in shop.items.items()]

    def slots(self) -> Response:
        asked = _query(schema.StoreQuery())
        shop = self._stores.get(asked["store_id"])
        if shop is None:
            raise Wrong([Problem("store_id", "notFound")])
        return jsonify(good(schema.calendar(self._door.now().astimezone(shop.zone), shop.closed)))

    def create(self) -> Response:
        visitor = self._visitor()
        key = request.headers.get("Idempotency-Key")
        text, document, same = _json_body()
        try:
            accepted = self._accept(visitor, key, text, document)
        except Wrong:
            # It was right when it was accepted: only the date, or our settings, can have moved on since.
            known = self._door.accepted_before(visitor.partner, key, same)
            if known is None:
                raise
            accepted = known
        if accepted.new:
            self._ring([accepted.order_id])
        return jsonify(good(accepted.answer))

    def _accept(self, visitor: Visitor, key: str | None, text: str, document: Any) -> Accepted:
        shop = visitor.shop
        now = self._door.now().astimezone(shop.zone)
        asked = schema.read_order(document, now.date(), key)
        images = self._door.known_images(visitor.partner, asked.images)
        schema.check_references(asked, stores=shop.stores, items=shop.items, images=images)
        wish = schema.first_free(asked, now, shop.closed)
        offer = _offer(visitor, key, text, document, asked, wish or asked.wishes[0])
        try:
            known = self._door.known(offer) if wish is None else self._door.accept(offer, shop.plan)
        except KeyReused:
            raise Wrong([Problem("Idempotency-Key", "keyReused")]) from None
        except ImageReused:
            raise Wrong([Problem("image_uuids", "imageReused")]) from None
        except UnderWay:
            raise Failed(answers.IN_PROGRESS, retry_after=2) from None
        if known is None:
            raise Wrong([Problem("datetime[0].timeslot", "slotUnavailable")])
        return known

    def list_orders(self) -> Response:
        partner = self._visitor().partner
        asked, narrowed = _query(schema.OrderQuery()), _filter()
        if not narrowed["findable"]:
            return jsonify(good([]))
        wanted = set(narrowed["filter"])
        # Statuses are found out row by row, so a filter by them is applied here, and so is what it skips.
        found = self._door.orders(
            partner, narrowed["query"], narrowed["store_ids"], skip=0 if wanted else asked["skip"]
        )
        rows = (answers.order_row(one) for one in found)
        if wanted:
            of_status = (row for row in rows if wanted & {row["_status"], row["_substatus"]})
            rows = islice(of_status, asked["skip"], None)  # type: ignore[assignment]
        return jsonify(good(list(islice(rows, asked["limit"]))))

    def order(self, number: int) -> Response:
        partner = self._visitor().partner
        found = self._door.order(partner, number) if number <= _MOST_NUMBER else None
        if found is None:
            raise Failed(answers.NOT_FOUND)
        return jsonify(good(answers.order_row(found)))


def _offer(visitor: Visitor, key: str | None, text: str, document: Any, asked: OrderRequest, wish: Wish) -> Offer:
    shop, store = visitor.shop, visitor.shop.stores[asked.store_id]
    prints = schema.prints(document, asked)

    def make(number: int, at: datetime) -> Made:
        title = answers.order_title(store, number)
        order = schema.to_order(
            asked,
            wish,
            title=title,
            partner=visitor.partner,
            stores=shop.stores,
            items=shop.items,
            zone=shop.zone,
        )
        return Made(title, order.to_json(), answers.order_answer(asked, number, at, visitor.partner, store))

    return Offer(
        account=shop.account,
        sender=visitor.partner,
        key=key,
        body=text,
        images=asked.images,
        same=prints.same,
        content=prints.content,
        likeness=prints.likeness,
        place=asked.store_id,
        search=schema.search_text(asked),
        make=make,
        facts={"partner": visitor.partner},
    )
