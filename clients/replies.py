"""Replies and network errors: what they mean, and what they say.

Nothing was sent (refused, no such name, TLS):     Unavailable
No answer, or one that makes no sense:             TryLater; Unclear if something was to change
401 (`clients.base` has renewed once), 403, 407:   Misconfigured
429, 503 with Retry-After:                         Unavailable
Other 5xx, 408, 425:                               TryLater; Unclear if something was to change
Any other status but 2xx:                          Refused, with the remote's words
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from html import unescape
from http.client import HTTPException
from typing import Any

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError

from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear

LONGEST_WAIT = 3600.0
"""Seconds of a `Retry-After` that are believed: one try an hour hurts nobody, a slip of theirs could cost us days."""
MOST_WORDS = 500


@dataclass(frozen=True, slots=True)
class Call:
    """A request as far as it may be shown: no query, body or credentials. `write`: it changes something."""

    method: str
    path: str
    write: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def unanswered(self, words: str, *, after: float | None = None, status: int | None = None) -> TryLater:
        """The error for an answer that is missing or makes no sense. Without `status` it counts as a fault of the
        remote as a whole, which is right for an answer of 200 that is a page about maintenance, too."""
        kind = Unclear if self.write else TryLater
        return kind(f"{self}: {words}", after=after, status=status)


def failure(call: Call, error: Exception) -> StepError:
    """The error for a request that got no answer."""
    words = root_cause(error)
    if isinstance(error, requests.exceptions.InvalidURL) or not isinstance(
        error, requests.RequestException | HTTPError
    ):  # the address of the remote or of a proxy; requests finds no CA bundle
        return Misconfigured(f"{call}: {words}")
    if _was_not_sent(error):
        return Unavailable(f"{call}: cannot connect: {words}")
    return call.unanswered(f"no answer: {words}")


def _was_not_sent(error: Exception) -> bool:
    if isinstance(error, requests.exceptions.ProxyError | requests.exceptions.ConnectTimeout):
        return True
    inner = error.args[0] if error.args else None
    return isinstance(getattr(inner, "reason", None), ConnectTimeoutError)


_OF_THE_NET = (OSError, HTTPError, HTTPException)  # another could be the caller's, who calls us from an `except`


def root_cause(error: BaseException) -> str:
    """What the system said at the bottom of it: requests' own messages carry the whole URL."""
    while isinstance(cause := error.__cause__ or error.__context__, _OF_THE_NET):
        error = cause
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{words or type(error).__name__}"[:MOST_WORDS]


def refusal(call: Call, answer: requests.Response) -> StepError:
    """The error for an answer other than 2xx."""
    status = answer.status_code
    after = retry_after(answer.headers)
    words = f"{status} {words_of(answer)}"
    if status == 429 or (status == 503 and after is not None):
        return Unavailable(f"{call}: {words}", after=after, status=status)
    if status in (401, 403, 407):
        return Misconfigured(f"{call}: {words}", status=status)
    if status >= 500 or status in (408, 425):  # some balancers greet a connection that was idle with 408
        return call.unanswered(words, after=after, status=status)
    return Refused(f"{call}: {words}", status=status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, whether they or a date were sent; the date is read by the remote's own clock if it tells the time."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return min(float(text), LONGEST_WAIT)
    then = _stamp(text)
    if then is None:
        return None
    now = _stamp(headers.get("Date", "")) or time.time()
    return min(max(then - now, 0.0), LONGEST_WAIT)


def _stamp(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


# -- the remote's words ------------------------------------------------------------------------------------------------

_ADDRESS = re.compile(r"[^\s@<>\"'(),;:=\[\]]+@[^\s@<>\"'(),;:=\[\]]+")
_TITLE = re.compile(r"<(title|h1)\b[^>]*>(.*?)</\1", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_UNNAMED = frozenset({"detail", "details", "error", "error_description", "errors", "message", "non_field_errors"})
_DEEPEST = 6
_MOST_READ = 5_000
"""Characters of a page that are looked at: the patterns above take their time over a long one."""
_NOT_SECRET = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Connection", "Content-Type", "Content-Length"})
"""Every other header that we send is one of credentials."""


def words_of(answer: requests.Response) -> str:
    """What an answer says, for people: JSON errors by field, the title of an HTML page, or its first words.

    Our credentials and addresses of mail are blotted out, in case they are echoed."""
    text = " ".join(_spoken(answer)[:_MOST_READ].split())
    for name, value in answer.request.headers.items():
        if name not in _NOT_SECRET:
            text = text.replace(value.rpartition(" ")[2], "***")
    text = _ADDRESS.sub("***@***", text).removeprefix(str(answer.status_code)).strip()
    return text if len(text) <= MOST_WORDS else text[: MOST_WORDS - 1] + "…"


def _spoken(answer: requests.Response) -> str:
    if answer.is_redirect:
        return f"redirects to {answer.headers['Location'].partition('?')[0]}"
    text = answer.content.decode(errors="replace").strip()[:_MOST_READ]
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = unescape(_TAGS.sub(" ", title[2] if title else text))
    elif text.startswith(("{", "[")):
        try:
            text = "; ".join(_said(parsed(answer), ""))
        except UNREADABLE:
            text = "broken JSON"
    return text or answer.reason or ""


def _said(value: Any, name: str, depth: int = 0) -> Iterator[str]:
    """The texts in a JSON document, each with the name of its field unless that says nothing."""
    if isinstance(value, str) and value.strip():
        yield f"{name}: {value}" if name else value
    if depth == _DEEPEST:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _said(inner, name if key in _UNNAMED else f"{name}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _said(inner, f"{name}[{place}]" if isinstance(inner, dict) else name, depth + 1)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
UNREADABLE = (ValueError, ArithmeticError, RecursionError)
"""What the decoder raises: for bad JSON, an exponent beyond all measure, and brackets without end."""


def parsed(answer: requests.Response) -> Any:
    """The JSON of an answer. Raises one of `UNREADABLE`."""
    return _DECODER.decode(answer.content.decode("utf-8-sig"))


class _NeedsDigits(Exception):
    """A float would round this number."""


def to_json(document: Any) -> bytes:
    """A document as JSON. A `Decimal` becomes a number of exactly its value. Raises `ValueError` for NaN and infinity,
    `TypeError` for what JSON does not have."""
    try:
        return json.dumps(document, default=_as_float, separators=(",", ":"), allow_nan=False).encode()
    except _NeedsDigits:
        return _spelled(document).encode()


def _as_float(value: Any) -> float:
    """For json.dumps, which writes a float as `repr` does: with the fewest digits that tell it from others, so that
    what came from a float goes back as it came."""
    if not isinstance(value, Decimal):
        raise TypeError(f"a {type(value).__name__} is no JSON")
    if not value.is_finite():
        raise ValueError(f"{value} is no JSON number")
    number = float(value)
    if Decimal(repr(number)) != value:
        raise _NeedsDigits
    return number


def _spelled(value: Any) -> str:
    """JSON written by hand: json.dumps has no way to write the digits of a `Decimal`."""
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{_spelled(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    return json.dumps(value, default=_as_float, allow_nan=False)
