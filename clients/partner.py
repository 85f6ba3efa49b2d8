"""The partner service's API, at which crews are booked. Contract: contracts/partner.md, sections 1, 2 and 6, whose
traps are named here by number.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import requests
from urllib3 import encode_multipart_formdata
from urllib3.exceptions import HTTPError

from clients.base import Client, Query, RenewedToken, segment
from clients.replies import UNREADABLE, Call, parsed, retry_after, root_cause, to_json, words_of
from orders.errors import Misconfigured, Refused, StepError, Unavailable

Json = dict[str, Any]

PATHS = {
    "authorize": "/auth/authorize",
    "list": "/order/list",
    "create": "/order/create",
    "order": "/order/{id}",
    "slots": "/masters/slots",
    "upload": "/image/upload",
    "items": "/item/list",
}
"""Only the first two are public; the others are assumed, and may be set otherwise (section 2)."""
PAGE_SIZE = 50
PER_SECOND = 5.0
"""Requests a second if no rate is set (section 7)."""
LONGEST_PACE = 5.0
"""Seconds a call may wait for its turn; beyond that its order goes back to the ledger."""


class Invalid(Refused):
    """The service refuses what was sent (422). `problems`: (field, type) of each, as far as it says so."""

    def __init__(self, reason: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(reason, status=422)
        self.problems = tuple(problems)


class Pace:
    """So many calls a second for this process, one after another."""

    def __init__(self, per_second: float = PER_SECOND) -> None:
        self._interval = 1.0 / per_second
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def __call__(self) -> None:
        """Wait for the next turn. Raises `Unavailable` when it is too far off."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            if turn - now > LONGEST_PACE:
                raise Unavailable("too many calls wait for their turn", after=turn - now)
            self._next = turn + self._interval
        time.sleep(turn - now)


class Login(RenewedToken):
    """The token of login and password, kept until it is refused: how long it lives is not documented (section 1)."""

    def __init__(
        self,
        url: str,
        login: str,
        password: str,
        *,
        path: str = PATHS["authorize"],
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(timeout=timeout, clock=clock)
        self._url = url.rstrip("/") + path
        self._password = password
        self._body = to_json({"login": login, "password": password})
        self._call = Call("POST", path)

    def fetch(self) -> tuple[Mapping[str, str], float]:
        """See `RenewedToken`. The header is literally `token`, without a scheme word (trap 8).

        What comes of it has no status, unless it is one of the credentials: the call that the token is for was not
        sent, or was refused, and that must not be taken for an answer to it."""
        headers = {"User-Agent": "orderfleet", "Accept": "application/json", "Content-Type": "application/json"}
        try:
            answer = requests.post(
                self._url, data=self._body, headers=headers, timeout=self.timeout, allow_redirects=False
            )
        except (OSError, HTTPError) as error:
            raise Unavailable(f"{self._call}: {root_cause(error)}") from None
        status = _real_status(answer)
        if status >= 500 or status in (408, 425, 429):
            raise Unavailable(f"{self._call}: {status} {self._words(answer)}", after=retry_after(answer.headers))
        if not 200 <= status < 300:
            raise Misconfigured(f"{self._call}: {status} {self._words(answer)}", status=status)
        try:
            return {"token": _text(parsed(answer)["data"]["token"])}, float("inf")
        except (*UNREADABLE, TypeError, KeyError):
            raise Unavailable(f"{self._call}: {status}, but without a token in it") from None

    def _words(self, answer: requests.Response) -> str:
        return words_of(answer).replace(self._password, "***")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("not a text")
    return value


class Partner(Client):
    """One account of the service. `paths`: those that differ from `PATHS`.

    Good is only what HTTP and the envelope both call so (section 1); what is returned is the envelope's `data`."""

    def __init__(self, url: str, *, paths: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self._paths = {**PATHS, **(paths or {})}

    def orders(self) -> Iterator[list[Json]]:
        """The pages of the account's bookings, the newest first, none of them twice: new ones shift the pages
        (section 2.3). All of them: how a filter travels is not said, so what one leaves out says nothing."""
        return self._pages("list", {}, "_id")

    def order(self, number: int) -> Json:
        """One booking. Raises `Refused` with status 404 if there is none, or no such path (section 2.3)."""
        return self._ask("GET", self._paths["order"].replace("{id}", segment(number)))

    def create_order(self, document: Json) -> Json:
        """Book a crew. Never to be sent again before it is known what became of the last time (trap 11).

        Raises `Invalid` for what breaks a rule."""
        return self._ask("POST", self._paths["create"], document=document)

    def slots(self, store_id: str) -> Json:
        """Date to timeslot to whether somebody is free then, in the store's own time (trap 10)."""
        return self._ask("GET", self._paths["slots"], query={"store_id": store_id})

    def items(self, store_id: str) -> Iterator[list[Json]]:
        """The pages of what the service handles for a store."""
        return self._pages("items", {"store_id": store_id}, "id")

    def upload_image(self, content: bytes, mimetype: str) -> list[Json]:
        """Put an image there; one entry, with its id. Each time it is another one."""
        part = ("receipt." + mimetype.rpartition("/")[2], content, mimetype)
        body, content_type = encode_multipart_formdata({"file": part})
        entries: list[Json] = self.request(
            "POST", self._paths["upload"], content=body, content_type=content_type, expect=list
        )
        return entries

    def _ask(self, method: str, path: str, **content: Any) -> Json:
        data: Json = self.request(method, path, **content)
        return data

    def _pages(self, name: str, wanted: Query, key: str) -> Iterator[list[Json]]:
        """`limit` is always sent: its default is 10 or 20 (trap 9)."""
        path, skip = self._paths[name], 0
        seen: set[str] = set()
        while True:
            rows = self.request("GET", path, query={"limit": PAGE_SIZE, "skip": skip, **wanted}, expect=list)
            if not all(isinstance(row, dict) for row in rows):
                raise Call("GET", path).unanswered("200, but what came is not a list of objects")
            # By `repr`: what is no id may be anything that JSON has.
            fresh = [row for row in rows if repr(row.get(key)) not in seen]
            if rows and not fresh:
                raise Call("GET", path).unanswered("200, but the next page is one that was read")
            seen.update(repr(row.get(key)) for row in fresh)
            yield fresh
            if len(rows) < PAGE_SIZE:
                return
            skip += PAGE_SIZE

    def _send(self, call: Call, request: requests.PreparedRequest, proof: Mapping[str, str]) -> requests.Response:
        answer = super()._send(call, request, proof)
        answer.status_code = _real_status(answer)
        return answer

    def sort(self, call: Call, answer: requests.Response, expect: type | None) -> Any:
        """422 names the fields; 409 is no refusal; and a 200 counts only with a good envelope (trap 7). No error says
        more of people than it must, whatever the status (trap 13)."""
        try:
            return self._sorted(call, answer, expect)
        except StepError as error:
            said = f"{call}: {answer.status_code}"
            error.reason = said + _without_people(error.reason.removeprefix(said))
            error.args = (error.reason,)
            raise

    def _sorted(self, call: Call, answer: requests.Response, expect: type | None) -> Any:
        status = answer.status_code
        if status == 409:
            raise call.unanswered(f"409 {_words(answer)}", after=retry_after(answer.headers), status=409)
        if status == 422:
            problems = _problems(answer)
            said = ", ".join(f"{field} {kind}".strip() for field, kind in problems)
            raise Invalid(f"{call}: 422 {said or _words(answer)}", problems)
        if status in (400, 404, 405, 413, 415):
            raise Refused(f"{call}: {status} {_words(answer)}", status=status)
        document = super().sort(call, answer, dict)
        if document.get("status") != "ok" or document.get("statusCode") != 200:
            raise call.unanswered(f"{status}, but the envelope around it is not a good one")
        if expect is not None and not isinstance(document.get("data"), expect):
            raise call.unanswered(f"{status}, but its data is not of the kind {expect.__name__}")
        return document.get("data")


# -- what the envelope says -------------------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")
_URL = re.compile(r"\w+://\S+")
_NUMBER = re.compile(r"\+?\d[\d ()-]{5,}\d")


def _real_status(answer: requests.Response) -> int:
    """The HTTP status, or what the envelope of an error says that came with HTTP 2xx."""
    if not 200 <= answer.status_code < 300:
        return answer.status_code
    document = _envelope(answer)
    told = document.get("statusCode")
    return told if document.get("status") == "error" and type(told) is int and 400 <= told < 600 else answer.status_code


def _envelope(answer: requests.Response) -> Json:
    try:
        document = parsed(answer)
    except UNREADABLE:
        return {}
    return document if isinstance(document, dict) else {}


def _problems(answer: requests.Response) -> list[tuple[str, str]]:
    """(field, type) of what is wrong. `data` may be a list of them, an object, or null (section 5.1).

    Only words of the contract's kind are taken: the others may hold what was sent, that is people's names, numbers and
    the addresses of their receipts (trap 13)."""
    data = _envelope(answer).get("data")
    if isinstance(data, dict):
        pairs = [(field, kind) for field, kinds in data.items() for kind in (kinds if _is_list(kinds) else [kinds])]
    elif isinstance(data, list):
        pairs = [(entry.get("field"), entry.get("type")) for entry in data if isinstance(entry, dict)]
    else:
        pairs = []
    return [(_word(field), _word(kind)) for field, kind in pairs if _word(field)]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _words(answer: requests.Response) -> str:
    """The envelope's message, else the first words of whatever came."""
    message = _envelope(answer).get("message")
    text = message if isinstance(message, str) and message.strip() else words_of(answer)
    return " ".join(text.split())[:500]


def _without_people(text: str) -> str:
    """Without addresses, which may be those of receipts, and without numbers as long as those of telephones."""
    return _NUMBER.sub("…", _URL.sub("…", text))
