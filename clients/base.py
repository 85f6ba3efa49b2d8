"""What the clients of all systems share: connections, credentials, paging, and one request with what became of it.

A system's own file subclasses `Client` and states facts: paths, parameters, bodies. `clients.replies` says which reply
is which of `orders.errors`. Floats arrive as `Decimal`, and `Decimal`s are sent as JSON numbers, digit by digit.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from clients.replies import (
    UNREADABLE,
    Call,
    failure,
    parsed,
    refusal,
    retry_after,
    root_cause,
    to_json,
    words_of,
)
from orders.errors import Misconfigured, Unavailable

Query = Mapping[str, str | int | None]
"""Parameters by name; None: not sent."""

EARLY = 30.0
"""Seconds before its end at which a token is renewed, or a tenth of its life if that is less."""
LIFETIME = 300.0
"""Seconds a token is taken to live if nobody says."""

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "User-Agent": "orderfleet",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
}
_JSON = "application/json"


# -- credentials -------------------------------------------------------------------------------------------------------


class Auth(Protocol):
    """How a remote knows us. Shared by threads."""

    def headers(self) -> Mapping[str, str]:
        """What proves it, for one request. Raises `Unavailable`, `Misconfigured`."""

    def renewed(self, refused: Mapping[str, str]) -> Mapping[str, str] | None:
        """Others instead of those that were answered with 401; None if there are none. Raises as `headers`."""


class StaticToken:
    """One header that never changes: `StaticToken("Authorization", "Bearer x")`."""

    def __init__(self, header: str, value: str) -> None:
        self._headers = {header: value}

    def headers(self) -> Mapping[str, str]:
        """See `Auth`."""
        return _checked(self._headers)

    def renewed(self, refused: Mapping[str, str]) -> None:
        """There is no other."""


def _checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Raises `Misconfigured` for what http.client would refuse with the secret in its message."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise Misconfigured(f"the credentials for the header {name} hold characters that no header may have")
    return headers


@dataclass(frozen=True, slots=True)
class _Token:
    headers: Mapping[str, str]
    good_until: float


class RenewedToken(ABC):
    """A token that ends: kept, shared by threads, renewed a little before its end, one renewal at a time."""

    def __init__(self, *, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout = timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._failures = 0
        self._failure: Unavailable | None = None

    @abstractmethod
    def fetch(self) -> tuple[Mapping[str, str], float]:
        """New headers, and the seconds for which they are good. Raises `Unavailable`, `Misconfigured`."""

    def headers(self) -> Mapping[str, str]:
        """See `Auth`."""
        token = self._token
        if token is None or self._clock() >= token.good_until:
            token = self._renew(token)
        return token.headers

    def renewed(self, refused: Mapping[str, str]) -> Mapping[str, str]:
        """See `Auth`."""
        token = self._token
        if token is None or token.headers is refused:
            token = self._renew(token)
        return token.headers

    def _renew(self, old: _Token | None) -> _Token:
        """Another token than `old`. Who waited while somebody else fetched shares what that brought, be it an error:
        sixteen threads must not wait for a dead host one after another."""
        failures = self._failures
        with self._lock:
            if self._token is not None and self._token is not old:
                return self._token
            if self._failure is not None and self._failures != failures:
                known = self._failure
                raise type(known)(known.reason, after=known.after, status=known.status)
            try:
                headers, lifetime = self.fetch()
            except Unavailable as failure:
                self._failures, self._failure = self._failures + 1, failure
                raise
            self._token = _Token(_checked(headers), self._clock() + lifetime - min(EARLY, lifetime / 10))
            return self._token


class OAuthClientCredentials(RenewedToken):
    """OAuth 2 client credentials, in the form body."""

    def __init__(
        self,
        token_url: str,
        client_id: str,
        secret: str,
        *,
        scope: str | None = None,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(timeout=timeout, clock=clock)
        self._url = token_url
        self._secret = secret
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        if scope is not None:
            self._form["scope"] = scope
        self._call = Call("POST", token_url.partition("?")[0])

    def fetch(self) -> tuple[Mapping[str, str], float]:
        """See `RenewedToken`. Asking twice does no harm: a fault that passes at once is nobody's business."""
        try:
            return self._fetch()
        except Misconfigured:
            raise
        except Unavailable as failure:
            if failure.status is not None and failure.status < 500:
                raise
            return self._fetch()

    def _fetch(self) -> tuple[Mapping[str, str], float]:
        try:
            answer = requests.post(
                self._url, data=self._form, headers=_HEADERS, timeout=self.timeout, allow_redirects=False
            )
        except (OSError, HTTPError) as error:
            raise Unavailable(f"{self._call}: {root_cause(error)}") from None
        if answer.status_code != 200:
            raise self._refusal(answer)
        try:
            document = parsed(answer)
            return {"Authorization": "Bearer " + document["access_token"]}, float(
                document.get("expires_in") or LIFETIME
            )
        except (*UNREADABLE, TypeError, KeyError, AttributeError):
            raise Unavailable(f"{self._call}: 200, but without a token in it") from None

    def _refusal(self, answer: requests.Response) -> Unavailable:
        status = answer.status_code
        reason = f"{self._call}: {status} {words_of(answer)}".replace(self._secret, "***")
        if status >= 500 or status in (408, 429):
            return Unavailable(reason, after=retry_after(answer.headers), status=status)
        return Misconfigured(reason, status=status)


# -- connections -------------------------------------------------------------------------------------------------------


class _TlsConnection(HTTPSConnection):
    """Whatever goes wrong up to the end of the handshake looks the same: nothing was sent."""

    def connect(self) -> None:
        try:
            super().connect()
        except (OSError, HTTPException) as error:
            raise NewConnectionError(self, str(error)) from error


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """As requests has it, for one remote: with `_TlsConnection`, and the pool looked up once, which at every call is a
    tenth of its cost. It never sends a request again: `max_retries` is 0."""

    _pool: Any = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "https": _TlsPool}
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def close(self) -> None:
        self._pool = None
        super().close()


def _nothing() -> None:
    pass


class Client:
    """One account of a remote system; thread-safe. Subclasses add a method for each request.

    `url` is where paths begin; credentials go nowhere else. `timeout`: seconds to connect, and seconds of silence.
    `pool_size`: connections kept open, as many as threads call. `pace` is called before every request and may raise
    `Unavailable`; `before_write` last of all before every one that changes something, and may raise `Fenced`.
    A redirect is not followed: that turns a write into a read (contract of CloudSuite, trap 13).
    Proxies and CA bundle are taken from the environment here, once; requests would look at every call."""

    def __init__(
        self,
        url: str,
        *,
        auth: Auth,
        timeout: float = 10.0,
        pool_size: int = 10,
        pace: Callable[[], None] = _nothing,
        before_write: Callable[[], None] = _nothing,
    ) -> None:
        self._url = (requests.Request("GET", url).prepare().url or "").rstrip("/")
        self._auth = auth
        self._timeout = timeout
        self._pace = pace
        self._before_write = before_write
        self.session = requests.Session()
        adapter = _Adapter(pool_connections=1, pool_maxsize=pool_size)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        surroundings = self.session.merge_environment_settings(self._url, {}, False, None, None)
        self._surroundings: dict[str, Any] = dict(surroundings)

    def close(self) -> None:
        """Close the connections; the next request would open them again."""
        self.session.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        document: Any = None,
        content: bytes | None = None,
        content_type: str = _JSON,
        expect: type | None = dict,
        write: bool | None = None,
    ) -> Any:
        """One request; the answer's JSON, which must be an `expect` (None: any 2xx is good, and nothing is returned).

        `path` begins with a slash and is percent-encoded, see `segment`. The body is `document`, written as JSON, or
        `content` as it is. `write` says whether it changes something, where the method does not. Raises every error
        of `orders.errors` but `InDoubt`."""
        call = Call(method, path, method not in _READS if write is None else write)
        body = content if document is None else to_json(document)
        request = _prepared(call, _target(self._url, path, query), body, content_type)
        proof = self._auth.headers()
        answer = self._send(call, request, proof)
        if answer.status_code == 401 and (other := self._auth.renewed(proof)) is not None:
            answer = self._send(call, request, other)
        return self.sort(call, answer, expect)

    def pages(self, path: str, query: Query, next_of: Callable[[Any], Any]) -> Iterator[Any]:
        """The pages of a list, each requested when it is asked for. `next_of` finds a page's link to the next one.

        Only the query of that link is used, on top of ours: its host may be a foreign one, which must not see our
        credentials. Raises `TryLater` for a link to a page that was read already."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        seen = set()
        while True:
            seen.add(frozenset(asked.items()))
            page = self.request("GET", path, query=asked)
            link = next_of(page)
            yield page
            if not link:
                return
            asked = {**asked, **dict(parse_qsl(urlsplit(str(link)).query, keep_blank_values=True))}
            if frozenset(asked.items()) in seen:
                raise Call("GET", path).unanswered("the link to the next page leads back to one that was read")

    def patience(self, call: Call) -> float:
        """Seconds to wait for this call's answer. To be extended where some calls of a system take longer."""
        return self._timeout

    def sort(self, call: Call, answer: requests.Response, expect: type | None) -> Any:
        """Turn an answer into its JSON, or raise what it means. To be extended where a system's statuses lie."""
        if not 200 <= answer.status_code < 300:
            raise refusal(call, answer)
        if expect is None:
            return None
        if answer.status_code == 204 and call.write:
            return expect()
        try:
            document = parsed(answer)
        except UNREADABLE:
            raise call.unanswered(f"{answer.status_code}, but what came is not JSON: {words_of(answer)}") from None
        if not isinstance(document, expect):
            raise call.unanswered(f"{answer.status_code}, but what came is not of the kind {expect.__name__}")
        return document

    def _send(self, call: Call, request: requests.PreparedRequest, proof: Mapping[str, str]) -> requests.Response:
        self._pace()
        request.headers.update(proof)
        if call.write:
            self._before_write()
        try:
            # Not by `Session.send`: it prepares to follow redirects even if told not to, and keeps cookies.
            adapter = self.session.get_adapter(self._url)
            answer = adapter.send(request, timeout=self.patience(call), **self._surroundings)
            _ = answer.content  # read here, where an error of the connection is still one
        except (OSError, HTTPError) as error:
            raise failure(call, error) from None
        return answer


def _prepared(call: Call, target: str, body: bytes | None, content_type: str) -> requests.PreparedRequest:
    """By hand: requests' own way takes half as long again, to merge settings that we do not have."""
    request = requests.PreparedRequest()
    request.method = call.method
    request.url = target
    request.headers = CaseInsensitiveDict(_HEADERS)
    if body is not None:
        request.body = body
        request.headers["Content-Type"] = content_type
    if body is not None or call.write:
        request.headers["Content-Length"] = str(len(body or b""))
    return request


def segment(value: object) -> str:
    """One part of a path, percent-encoded. Raises `ValueError` for one that would make it another path."""
    text = str(value)
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} cannot be a part of a path")
    return quote(text, safe="")


def _target(url: str, path: str, query: Query | None) -> str:
    if not path.startswith("/"):  # else it could go on with the name of the host
        raise ValueError(f"a path begins with a slash: {path}")
    if not query:
        return url + path
    return f"{url}{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"
