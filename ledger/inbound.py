"""Orders that are put in at our own door: every read and write of their requests, images and tokens, named.

An order is accepted in one transaction: its number, its event, order and plan, and the request by which it is known
again. Either all of that is there, and the sender may be told, or nothing is.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.intake import take_in_on
from ledger.models import counters, documents, inbound_images, inbound_requests, inbound_tokens, orders
from orders.arrival import Arrival
from orders.inbound import Accepted, Image, ImageReused, KeyReused, Listed, Made, Offer, UnderWay
from orders.outcomes import Planned

MOST_TOKENS = 5
"""Live tokens of one holder."""
KEPT_ANSWERS = 30 * 86400.0
KEPT_UNLINKED = 7 * 86400.0
ALIKE = 600.0
"""Seconds within which an order just like another one is suspected to be the same."""
PAGE = 500
"""Orders read at a time."""

_IMAGE_ID = re.compile("[0-9a-f]{24}")
"""Anything else may hold what a database refuses to be asked for."""

AnyRow = Row[*tuple[Any, ...]]

_REQUEST = (inbound_requests.c.number, inbound_requests.c.order_id, inbound_requests.c.answer)
_LISTED = (
    inbound_requests.c.number,
    inbound_requests.c.answer,
    orders.c.state,
    orders.c.signalled,
    orders.c.facts,
)


class Door:
    """The door of one system. Thread-safe."""

    def __init__(self, ledger: Ledger, system: str, *, page: int = PAGE) -> None:
        self._ledger = ledger
        self._page = page
        self._system = system
        self._under_way: set[tuple[str, str]] = set()
        self._guard = threading.Lock()

    def now(self) -> datetime:
        """The database's clock."""
        with self._ledger.reading() as connection:
            moment: datetime = connection.execute(select(now().label("now"))).scalar_one()
        return moment

    # -- tokens -------------------------------------------------------------------------------------------------------

    def add_token(self, holder: str, digest: str) -> None:
        """Let the token with this digest in; the holder's oldest ones beyond `MOST_TOKENS` are dropped."""
        mine = and_(inbound_tokens.c.system == self._system, inbound_tokens.c.holder == holder)
        newest = select(inbound_tokens.c.id).where(mine).order_by(inbound_tokens.c.id.desc()).limit(MOST_TOKENS)
        with self._ledger.transaction() as connection:
            self._one_at_a_time(connection, f"token:{holder}")
            connection.execute(
                insert(inbound_tokens).values(system=self._system, holder=holder, digest=digest, created_at=now())
            )
            connection.execute(delete(inbound_tokens).where(mine, inbound_tokens.c.id.not_in(newest.scalar_subquery())))

    def live_token(self, digests: Sequence[str]) -> str | None:
        """The one of these digests that is a live token's."""
        wanted = select(inbound_tokens.c.digest).where(
            inbound_tokens.c.system == self._system, inbound_tokens.c.digest.in_(digests)
        )
        with self._ledger.reading() as connection:
            return connection.execute(wanted.limit(1)).scalar_one_or_none()

    # -- images -------------------------------------------------------------------------------------------------------

    def add_image(self, sender: str, mimetype: str, content: bytes) -> str:
        """Keep an image; returns its id, 24 hexadecimal digits."""
        image_id = secrets.token_hex(12)
        with self._ledger.statement() as connection:
            connection.execute(
                insert(inbound_images).values(
                    id=image_id,
                    system=self._system,
                    sender=sender,
                    mimetype=mimetype,
                    content=content,
                    created_at=now(),
                )
            )
        return image_id

    def image(self, sender: str, image_id: str) -> Image | None:
        """An image of this sender's."""
        if not _IMAGE_ID.fullmatch(image_id):
            return None
        wanted = select(inbound_images.c.id, inbound_images.c.mimetype, inbound_images.c.content).where(
            inbound_images.c.id == image_id,
            inbound_images.c.system == self._system,
            inbound_images.c.sender == sender,
        )
        with self._ledger.reading() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else Image(*row)

    def known_images(self, sender: str, image_ids: Sequence[str]) -> set[str]:
        """Those of these images that this sender uploaded."""
        wanted = select(inbound_images.c.id).where(
            inbound_images.c.id.in_([image_id for image_id in image_ids if _IMAGE_ID.fullmatch(image_id)]),
            inbound_images.c.system == self._system,
            inbound_images.c.sender == sender,
        )
        with self._ledger.reading() as connection:
            return set(connection.execute(wanted).scalars())

    # -- orders -------------------------------------------------------------------------------------------------------

    def accepted_before(self, sender: str, key: str | None, same: str) -> Accepted | None:
        """What became of the very same request, with the same key if it has one."""
        wanted = select(*_REQUEST).where(
            *self._kept(sender),
            inbound_requests.c.same == same,
            inbound_requests.c.request_key.is_(None) if key is None else inbound_requests.c.request_key == key,
        )
        with self._ledger.reading() as connection:
            row = connection.execute(wanted.order_by(inbound_requests.c.number).limit(1)).one_or_none()
        return None if row is None else _accepted(row)

    def known(self, offer: Offer) -> Accepted | None:
        """The order that this offer became earlier. Raises `KeyReused` and `ImageReused`."""
        with self._ledger.reading() as connection:
            return self._known(connection, offer)

    def accept(self, offer: Offer, plan: Sequence[Planned]) -> Accepted:
        """Make the offer an order, or find the one that it became earlier, however many come at once.

        Raises `KeyReused`, `ImageReused`, and `UnderWay` when another request with the same key is at this point."""
        with self._alone(offer), self._ledger.transaction() as connection:
            if offer.key is not None and not self._locked(connection, f"key:{offer.sender}:{offer.key}"):
                raise UnderWay
            # From here on one at a time: the numbers have no gaps, and of two equal requests one is the first.
            self._one_at_a_time(connection, "accept")
            known = self._known(connection, offer)
            return known if known is not None else self._accept(connection, offer, plan)

    def _known(self, connection: Connection, offer: Offer) -> Accepted | None:
        return self._by_key(connection, offer) or self._by_images(connection, offer)

    def _by_key(self, connection: Connection, offer: Offer) -> Accepted | None:
        if offer.key is None:
            return None
        wanted = select(*_REQUEST, inbound_requests.c.same).where(
            *self._kept(offer.sender), inbound_requests.c.request_key == offer.key
        )
        row = connection.execute(wanted).one_or_none()
        if row is not None and row.same != offer.same:
            raise KeyReused
        return None if row is None else _accepted(row)

    def _by_images(self, connection: Connection, offer: Offer) -> Accepted | None:
        """An image belongs to one order: the same images again are a blind retry, or a mistake of the sender's."""
        linked = select(inbound_images.c.number).where(
            inbound_images.c.id.in_(offer.images),
            inbound_images.c.system == self._system,
            inbound_images.c.sender == offer.sender,
            inbound_images.c.number.is_not(None),
        )
        numbers = set(connection.execute(linked).scalars())
        if not numbers:
            return None
        if len(numbers) > 1:
            raise ImageReused
        number = numbers.pop()
        mine = and_(inbound_images.c.system == self._system, inbound_images.c.number == number)
        images = set(connection.execute(select(inbound_images.c.id).where(mine)).scalars())
        row = connection.execute(
            select(*_REQUEST, inbound_requests.c.content).where(
                *self._kept(offer.sender), inbound_requests.c.number == number
            )
        ).one_or_none()
        if row is None or row.content != offer.content or images != set(offer.images):
            raise ImageReused
        return _accepted(row)

    def _accept(self, connection: Connection, offer: Offer, plan: Sequence[Planned]) -> Accepted:
        number = self._next_number(connection)
        moment: datetime = connection.execute(select(now().label("now"))).scalar_one()
        made = offer.make(number, moment)
        flags = self._flags(connection, offer)
        arrival = Arrival(
            account=offer.account,
            external_id=str(number),
            dedupe_key=f"inbound:{number}",
            kind="order",
            body=offer.body,
            plan=tuple(plan),
            reference=made.reference,
        )
        (order_id,) = take_in_on(connection, self._ledger, self._system, [arrival]).new
        facts = offer.facts | ({"flags": flags} if flags else {})
        connection.execute(update(orders).where(orders.c.id == order_id).values(facts=json.dumps(facts)))
        connection.execute(
            insert(documents).values(
                order_id=order_id, raw=offer.body, document=json.dumps(made.document), updated_at=now()
            )
        )
        self._write_request(connection, offer, number, order_id, made)
        return Accepted(number, order_id, made.answer, new=True)

    def _write_request(self, connection: Connection, offer: Offer, number: int, order_id: int, made: Made) -> None:
        if offer.key is not None:
            mine = (inbound_requests.c.sender == offer.sender, inbound_requests.c.request_key == offer.key)
            connection.execute(_free_keys(self._system).where(*mine))
        connection.execute(
            insert(inbound_requests).values(
                system=self._system,
                number=number,
                order_id=order_id,
                sender=offer.sender,
                request_key=offer.key,
                same=offer.same,
                content=offer.content,
                likeness=offer.likeness,
                place=offer.place,
                search=f"{made.reference.casefold()}\n{offer.search}",
                answer=json.dumps(made.answer),
                created_at=now(),
            )
        )
        for position, image_id in enumerate(offer.images):
            linked = connection.execute(
                update(inbound_images)
                .where(
                    inbound_images.c.id == image_id,
                    inbound_images.c.system == self._system,
                    inbound_images.c.sender == offer.sender,
                    inbound_images.c.number.is_(None),
                )
                .values(number=number, position=position)
            )
            if linked.rowcount != 1:  # purged in this very moment: the sender is to upload it again
                raise ImageReused

    def _flags(self, connection: Connection, offer: Offer) -> list[str]:
        if offer.key is not None:
            return []
        wanted = select(inbound_requests.c.number).where(
            inbound_requests.c.system == self._system,
            inbound_requests.c.sender == offer.sender,
            inbound_requests.c.likeness == offer.likeness,
            inbound_requests.c.created_at > later(literal(-ALIKE)),
        )
        twins = connection.execute(wanted.order_by(inbound_requests.c.number)).scalars().all()
        if not twins:
            return []
        numbers = ", ".join(str(number) for number in twins)
        return [f"it may be a double of {numbers}: all but the images is the same, within {ALIKE / 60:g} minutes"]

    def _next_number(self, connection: Connection) -> int:
        name = f"inbound:{self._system}"
        insert_ = postgresql.insert if self._ledger.postgresql else sqlite.insert
        connection.execute(insert_(counters).values(name=name, value=0).on_conflict_do_nothing())
        taken = update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
        number: int = connection.execute(taken.returning(counters.c.value)).scalar_one()
        return number - 1

    def _kept(self, sender: str) -> tuple[ColumnElement[bool], ...]:
        """Requests of this sender whose answers are still repeated."""
        return (
            inbound_requests.c.system == self._system,
            inbound_requests.c.sender == sender,
            inbound_requests.c.created_at > later(literal(-KEPT_ANSWERS)),
        )

    # -- what a sender may see ----------------------------------------------------------------------------------------

    def order(self, sender: str, number: int) -> Listed | None:
        """One order of this sender's."""
        with self._ledger.reading() as connection:
            row = connection.execute(self._listed(sender).where(inbound_requests.c.number == number)).one_or_none()
        return None if row is None else _listed(row)

    def orders(self, sender: str, query: str = "", places: Sequence[str] = (), skip: int = 0) -> Iterator[Listed]:
        """The orders of this sender, the newest first, read as far as somebody goes on asking.

        `query` is a number, or part of what the order can be found by. `places`: only from these. `skip`: without so
        many of the newest."""
        wanted = self._listed(sender).order_by(inbound_requests.c.number.desc()).limit(self._page)
        if query:
            wanted = wanted.where(_found_by(query.casefold()))
        if places:
            wanted = wanted.where(inbound_requests.c.place.in_(places))
        page = wanted.offset(skip)
        while True:
            with self._ledger.reading() as connection:
                rows = connection.execute(page).all()
            yield from map(_listed, rows)
            if len(rows) < self._page:
                return
            page = wanted.where(inbound_requests.c.number < rows[-1].number)

    def _listed(self, sender: str) -> Select[Any]:
        return (
            select(*_LISTED)
            .join(orders, orders.c.id == inbound_requests.c.order_id)
            .where(inbound_requests.c.system == self._system, inbound_requests.c.sender == sender)
        )

    # -- one at a time ------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, offer: Offer) -> Iterator[None]:
        """Nobody else in this process accepts a request with this key. Raises `UnderWay`."""
        if offer.key is None:
            yield
            return
        mine = (offer.sender, offer.key)
        with self._guard:
            if mine in self._under_way:
                raise UnderWay
            self._under_way.add(mine)
        try:
            yield
        finally:
            with self._guard:
                self._under_way.discard(mine)

    def _locked(self, connection: Connection, name: str) -> bool:
        """Whether this transaction alone has `name`. SQLite has one writer anyway."""
        if not self._ledger.postgresql:
            return True
        lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"inbound:{self._system}:{name}", 0))
        return bool(connection.execute(select(lock)).scalar_one())

    def _one_at_a_time(self, connection: Connection, name: str) -> None:
        """Wait until no other transaction has `name`."""
        if self._ledger.postgresql:
            lock = func.pg_advisory_xact_lock(func.hashtextextended(f"inbound:{self._system}:{name}", 0))
            connection.execute(select(lock))


def purge(ledger: Ledger, system: str) -> None:
    """Forget what is kept for a while only: images that no order took, and the keys of old requests."""
    with ledger.statement() as connection:
        connection.execute(
            delete(inbound_images).where(
                inbound_images.c.system == system,
                inbound_images.c.number.is_(None),
                inbound_images.c.created_at < later(literal(-KEPT_UNLINKED)),
            )
        )
        connection.execute(_free_keys(system))


def _free_keys(system: str) -> Update:
    return (
        update(inbound_requests)
        .where(
            inbound_requests.c.system == system,
            inbound_requests.c.request_key.is_not(None),
            inbound_requests.c.created_at <= later(literal(-KEPT_ANSWERS)),
        )
        .values(request_key=None)
    )


def images_of(ledger: Ledger, order_id: int) -> list[Image]:
    """The images of an order that was put in at our door, in the order in which its sender named them."""
    wanted = (
        select(inbound_images.c.id, inbound_images.c.mimetype, inbound_images.c.content)
        .join(
            inbound_requests,
            and_(
                inbound_requests.c.system == inbound_images.c.system,
                inbound_requests.c.number == inbound_images.c.number,
            ),
        )
        .where(inbound_requests.c.order_id == order_id)
        .order_by(inbound_images.c.position)
    )
    with ledger.reading() as connection:
        return [Image(*row) for row in connection.execute(wanted)]


def request_of(ledger: Ledger, order_id: int) -> str | None:
    """The request that an order came with, as its sender wrote it."""
    wanted = (
        select(documents.c.raw)
        .join(inbound_requests, inbound_requests.c.order_id == documents.c.order_id)
        .where(documents.c.order_id == order_id)
    )
    with ledger.reading() as connection:
        return connection.execute(wanted).scalar_one_or_none()


def _accepted(row: AnyRow) -> Accepted:
    return Accepted(row.number, row.order_id, json.loads(row.answer), new=False)


def _listed(row: AnyRow) -> Listed:
    signals = frozenset(name for name in row.signalled.split("|") if name)
    return Listed(row.number, json.loads(row.answer), row.state, signals, json.loads(row.facts))


def _found_by(query: str) -> ColumnElement[bool]:
    """A part of the text, the same number, or, for what looks like a telephone number, a part of its digits."""
    digits = "".join(letter for letter in query if letter not in " +-()")
    ways = [inbound_requests.c.search.contains(query, autoescape=True)]
    if digits.isascii() and digits.isdecimal():
        ways.append(inbound_requests.c.search.contains(digits))
    if query.isascii() and query.isdecimal() and len(query) < 19:  # more digits than an id can have
        ways.append(inbound_requests.c.number == int(query))
    return or_(*ways)
