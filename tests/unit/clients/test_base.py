"""The clients' base against a real socket: every way in which a request can end."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.utils import formatdate
from typing import Any

import pytest
import requests
from urllib3.exceptions import MaxRetryError, NameResolutionError

from clients.base import OAuthClientCredentials, RenewedToken, StaticToken, segment
from clients.replies import MOST_WORDS, Call, failure, to_json
from orders.errors import Fenced, Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from tests.unit.clients.conftest import Remote, answer, hang_up

PATH = "/api/order/7/"
HTML = "<html><head><title>502 Bad\n Gateway</title></head><body><h1>nginx</h1></body></html>"
NOON = "Wed, 04 Mar 2026 12:00:00 GMT"


def ask(client: Any, method: str, **options: Any) -> Any:
    """The error of one request."""
    document = {"state": "x"} if method != "GET" else None
    with pytest.raises(StepError) as caught:
        client.request(method, PATH, query={"secret": "in-the-query"}, document=document, **options)
    assert "in-the-query" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    return caught.value


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody will: it is bound."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# -- replies ----------------------------------------------------------------------------------------------------------

REPLIES: list[tuple[Any, ...]] = [
    # status, headers, body, error of a read, error of a write, its words
    (400, {}, '{"state": ["\\"x\\" is not a valid choice."]}', Refused, Refused, 'state: "x" is not a valid choice.'),
    (400, {}, '{"non_field_errors": ["No."], "a": {"b": ["c"]}}', Refused, Refused, "No.; a.b: c"),
    (
        400,
        {},
        '{"order_lines": [{}, {"quantity": ["Too few."]}]}',
        Refused,
        Refused,
        "order_lines[1].quantity: Too few.",
    ),
    (400, {}, "DesadvNumber 7\n is known", Refused, Refused, "DesadvNumber 7 is known"),
    (400, {}, "", Refused, Refused, "Bad Request"),
    (401, {}, '{"detail": "Invalid token."}', Misconfigured, Misconfigured, "Invalid token."),
    (403, {}, '{"detail": "Not you."}', Misconfigured, Misconfigured, "Not you."),
    (404, {}, '{"detail": "Not found."}', Refused, Refused, "Not found."),
    (404, {}, "<h1>Not &amp; Found</h1>", Refused, Refused, "Not & Found"),
    (404, {}, "<p>Nothing</p><script>x()</script> <b>here</b>", Refused, Refused, "Nothing here"),
    (409, {}, '{"message": "older"}', Refused, Refused, "older"),
    (422, {}, "{broken", Refused, Refused, "broken JSON"),
    (422, {}, '{"top": "x", "a": ' + "[" * 9 + '"deep"' + "]" * 9 + "}", Refused, Refused, "top: x"),
    (301, {"Location": "/api/order/7?key=in-the-query"}, "", Refused, Refused, "redirects to /api/order/7"),
    (302, {}, "", Refused, Refused, "Found"),
    (408, {}, "", TryLater, Unclear, "Request Timeout"),
    (429, {"Retry_After": "17"}, '{"detail": "Slow."}', Unavailable, Unavailable, "Slow."),
    (500, {}, '{"detail": "Oh."}', TryLater, Unclear, "Oh."),
    (501, {}, "", TryLater, Unclear, "Not Implemented"),
    (502, {}, HTML, TryLater, Unclear, "Bad Gateway"),
    (503, {}, HTML, TryLater, Unclear, "502 Bad Gateway"),
    (503, {"Retry_After": "17"}, "", Unavailable, Unavailable, "Service Unavailable"),
    (504, {}, "", TryLater, Unclear, "Gateway Timeout"),
]


@pytest.mark.parametrize(("status", "headers", "body", "reading", "writing", "words"), REPLIES)
def test_every_status_has_its_error_and_says_why(connect, remote, status, headers, body, reading, writing, words):
    remote.answers = [answer(status, body, **headers)]
    client = connect()
    for method, expected in (("GET", reading), ("PATCH", writing), ("PUT", writing), ("POST", writing)):
        error = ask(client, method)
        assert type(error) is expected
        assert error.status == status
        assert str(error) == f"{method} {PATH}: {status} {words}"
    assert len(remote.seen) == 4


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"Retry_After": "17"}, 17.0),
        ({"Retry_After": " 0.5 "}, 0.5),
        ({"Retry_After": "0"}, 0.0),
        ({"Retry_After": "Wed, 04 Mar 2026 12:01:30 GMT", "Date": NOON}, 90.0),
        ({"Retry_After": "Wed, 04 Mar 2026 11:00:00 GMT", "Date": NOON}, 0.0),
        ({"Retry_After": "99999999"}, 3600.0),
        ({"Retry_After": "Wed, 04 Mar 2076 12:00:00 GMT", "Date": NOON}, 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(connect, remote, status, headers, after):
    remote.answers = [_bare(status, headers)]
    error = ask(connect(), "PATCH")
    assert isinstance(error, Unavailable)
    assert error.after == after


def _bare(status: int, headers: dict[str, str]):
    """Without the `Date` that http.server would add."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    raw = "\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()
    return lambda handler: handler.wfile.write(raw)


def test_a_date_without_the_remotes_time_goes_by_ours(connect, remote):
    remote.answers = [_bare(429, {"Retry_After": formatdate(usegmt=True)})]
    error = ask(connect(), "GET")
    assert error.after == 0.0
    remote.answers = [_bare(429, {"Retry_After": "Fri, 31 Dec 2077 23:59:59 GMT"})]
    assert ask(connect(), "GET").after == 3600.0


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-5", "Wed, 99 Mar 2026 12:00:00 GMT"])
def test_a_retry_after_without_sense_is_none(connect, remote, text):
    remote.answers = [answer(429, "", Retry_After=text)]
    assert ask(connect(), "GET").after is None
    remote.answers = [answer(503, "", Retry_After=text)]
    assert type(ask(connect(), "GET")) is TryLater


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b"[1]",
        b'"x"',
        b"null",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a": 1e9999999999999999999}',
    ],
)
def test_a_success_that_makes_no_sense_is_none(connect, remote, body):
    remote.answers = [answer(200, body)]
    client = connect()
    reading, writing = ask(client, "GET"), ask(client, "PATCH")
    assert type(reading) is TryLater
    assert type(writing) is Unclear
    assert reading.reason.startswith(f"GET {PATH}: 200, but what came is not ")
    assert reading.status is None  # it counts against the remote


def test_what_is_expected_of_a_success(connect, remote):
    client = connect()
    remote.answers = [answer(204, b"")]
    assert client.request("PATCH", PATH, document={}) == {}
    assert type(ask(client, "GET")) is TryLater
    remote.answers = [answer(202, b"\xef\xbb\xbf[1.10]")]
    assert client.request("GET", PATH, expect=list) == [Decimal("1.10")]
    remote.answers = [answer(200, b"what ever")]
    assert client.request("POST", PATH, content=b"<x/>", content_type="application/xml", expect=None) is None
    assert (remote.seen[-1].body, remote.seen[-1].headers["Content-Type"]) == (b"<x/>", "application/xml")


def test_a_post_may_be_a_read(connect, remote):
    remote.answers = [answer(500)]
    assert type(ask(connect(), "POST", write=False)) is TryLater


def test_words_are_short_and_give_nothing_away(connect, remote):
    echoed = "Bearer s3cret-token of jane.doe@example.com " + "x" * 100_000
    for body in (echoed, json.dumps({"detail": echoed}), f"<title>{echoed}</title>"):
        remote.answers = [answer(400, body)]
        words = ask(connect(), "GET").reason
        assert words.startswith(f"GET {PATH}: 400 Bearer *** of ***@*** xxx")
        assert len(words) <= MOST_WORDS + len(f"GET {PATH}: 400 ")
        assert "jane" not in words


# -- no replies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_what_was_not_sent_is_no_doubt(connect, closed_port, method):
    error = ask(connect(f"http://127.0.0.1:{closed_port}"), method)
    assert type(error) is Unavailable
    assert str(error) == f"{method} {PATH}: cannot connect: Connection refused"


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_a_name_that_nobody_knows(method):
    unknown = NameResolutionError("shop.invalid", None, socket.gaierror(-2, "Name or service not known"))  # type: ignore[arg-type]
    error = requests.ConnectionError(MaxRetryError(None, "/x?secret", unknown))  # type: ignore[arg-type]
    assert type(failure(Call(method, PATH, method != "GET"), error)) is Unavailable


def test_a_handshake_that_fails_has_sent_nothing(connect, remote):
    url = remote.url.replace("http:", "https:")
    error = ask(connect(url), "PATCH")
    assert type(error) is Unavailable
    assert "SSL" in error.reason


@pytest.mark.parametrize("end", ["closed", "silent"])
def test_a_handshake_without_an_answer_has_sent_nothing(connect, end):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = connect(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, client, "PATCH")
            with listener.accept()[0]:
                if end == "silent":
                    asked.exception()
        assert type(asked.result()) is Unavailable


@pytest.mark.parametrize(("method", "expected"), [("GET", TryLater), ("PATCH", Unclear), ("POST", Unclear)])
def test_an_answer_that_does_not_come(connect, remote, method, expected):
    for lost in (hang_up, remote.silence, answer(200, b'{"a"', Content_Length="1000")):
        remote.answers = [lost]
        before = len(remote.seen)
        error = ask(connect(timeout=0.3), method)
        assert type(error) is expected
        assert error.status is None
        assert error.reason.startswith(f"{method} {PATH}: no answer: ")
        assert len(remote.seen) == before + 1, "a request must not be sent again"


def test_a_write_lost_on_a_connection_that_was_in_use_is_not_sent_again(connect, remote):
    remote.answers = [answer(), hang_up, answer()]
    client = connect()
    client.request("GET", PATH)
    assert type(ask(client, "PATCH")) is Unclear
    assert [(one.method, one.connection) for one in remote.seen] == [("GET", 1), ("PATCH", 1)]


def test_a_connection_that_was_closed_while_idle_is_replaced(connect, remote):
    client = connect()
    client.request("GET", PATH)
    remote.end_connections()
    client.request("PATCH", PATH, document={})
    assert [(one.method, one.connection) for one in remote.seen] == [("GET", 1), ("PATCH", 2)]


def test_an_error_of_the_caller_does_not_get_into_the_words(connect, closed_port):
    try:
        raise ValueError("something of the caller's")
    except ValueError:
        error = ask(connect(f"http://127.0.0.1:{closed_port}"), "GET")
    assert error.reason.endswith("Connection refused")


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_redirect_of_a_write_is_not_followed(connect, remote):
    remote.answers = [answer(301, Location=f"{remote.url}/elsewhere"), answer()]
    assert type(ask(connect(), "PATCH")) is Refused
    assert [one.method for one in remote.seen] == ["PATCH"]


def test_what_is_sent(connect, remote):
    client = connect(f"{remote.url}/pos/v3/")
    client.request("POST", "/x/", query={"a": "ü&", "n": 1, "none": None}, document={"ü": Decimal("1.10")})
    client.request("DELETE", f"/{segment('A/1 ü?#')}")
    post, delete = remote.seen
    assert post.target == "/pos/v3/x/?a=%C3%BC%26&n=1"
    assert json.loads(post.body) == {"ü": 1.1}
    assert post.headers["Authorization"] == "Bearer s3cret-token"
    assert post.headers["Content-Type"] == post.headers["Accept"] == "application/json"
    assert (delete.target, delete.headers["Content-Length"]) == ("/pos/v3/A%2F1%20%C3%BC%3F%23", "0")


def test_a_path_cannot_become_another(connect):
    for part in ("", ".", ".."):
        with pytest.raises(ValueError, match="part of a path"):
            segment(part)
    with pytest.raises(ValueError, match="slash"):
        connect().request("GET", "@evil.example/")


def test_connections_are_kept_and_shared_by_threads(connect, remote):
    client = connect(pool_size=4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.request("GET", PATH), range(100)))
    assert len(remote.seen) == 100
    assert remote.connections <= 4


def test_a_closed_client_has_closed_its_connections_and_opens_others(connect, remote):
    client = connect()
    client.request("GET", PATH)
    client.close()
    client.request("GET", PATH)
    assert [one.connection for one in remote.seen] == [1, 2]


def test_pace_comes_before_every_request_and_the_fence_before_every_write(connect, remote):
    calls: list[str] = []
    client = connect(pace=lambda: calls.append("pace"), before_write=lambda: calls.append("fence"))
    for method, write in (("GET", None), ("PATCH", None), ("POST", False), ("GET", True)):
        client.request(method, PATH, write=write)
    assert calls == ["pace", "pace", "fence", "pace", "pace", "fence"]


def test_a_fenced_write_is_not_sent(connect, remote):
    def fence() -> None:
        raise Fenced("another holds it")

    client = connect(before_write=fence)
    client.request("GET", PATH)
    with pytest.raises(Fenced):
        client.request("PATCH", PATH, document={})
    assert [one.method for one in remote.seen] == ["GET"]


def test_a_pace_that_cannot_wait_holds_the_request_back(connect, remote):
    def pace() -> None:
        raise Unavailable("too fast", after=9)

    assert ask(connect(pace=pace), "GET").after == 9
    assert remote.seen == []


def test_cookies_are_not_sent_back(connect, remote):
    remote.answers = [answer(Set_Cookie="session=abc; Path=/")]
    client = connect()
    for _ in range(2):
        client.request("GET", PATH)
    assert "Cookie" not in remote.seen[1].headers


# -- the environment --------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_the_proxy_of_the_environment_is_used_and_read_once(connect, remote, environment, closed_port):
    environment.setenv("HTTP_PROXY", remote.url)
    client = connect("http://shop.invalid")
    environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    for _ in range(2):
        client.request("PATCH", PATH, document={})
    assert [one.target for one in remote.seen] == [f"http://shop.invalid{PATH}"] * 2
    error = ask(connect("http://shop.invalid"), "PATCH")
    assert type(error) is Unavailable
    assert error.reason.endswith("Connection refused")


def test_no_proxy_is_honoured(connect, remote, environment, closed_port):
    environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    environment.setenv("NO_PROXY", "127.0.0.1")
    connect().request("GET", PATH)
    assert [one.target for one in remote.seen] == [PATH]


def test_a_tunnel_that_is_refused_has_sent_nothing(connect, remote, environment):
    environment.setenv("HTTPS_PROXY", remote.url)
    remote.answers = [answer(407)]
    error = ask(connect("https://shop.invalid"), "PATCH")
    assert type(error) is Unavailable
    assert "407" in error.reason
    assert [one.method for one in remote.seen] == ["CONNECT"]


def test_a_handshake_that_fails_behind_a_tunnel_has_sent_nothing(connect, remote, environment):
    environment.setenv("HTTPS_PROXY", remote.url)
    remote.answers = [lambda handler: handler.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\nthis is no TLS")]
    error = ask(connect("https://shop.invalid"), "PATCH")
    assert type(error) is Unavailable
    assert "SSL" in error.reason


def test_a_missing_bundle_of_certificates_is_a_setting(connect, remote, environment):
    environment.setenv("REQUESTS_CA_BUNDLE", "no-such-file.pem")
    assert type(ask(connect(remote.url.replace("http:", "https:")), "PATCH")) is Misconfigured


# -- credentials ------------------------------------------------------------------------------------------------------


class Countdown(RenewedToken):
    """Tokens 1, 2, 3 ... that live 300 s; `fault` is raised instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fetched = 0
        self.fault: Unavailable | None = None

    def fetch(self) -> tuple[dict[str, str], float]:
        self.fetched += 1
        if self.fault is not None:
            raise self.fault
        return {"token": str(self.fetched)}, 300.0


def test_a_token_is_kept_until_a_little_before_its_end():
    now = [0.0]
    auth = Countdown(clock=lambda: now[0])
    taken = []
    for now[0] in (0.0, 269.9, 270.1, 539.9, 540.2):
        taken.append(auth.headers()["token"])
    assert taken == ["1", "1", "2", "2", "3"]


def test_a_401_renews_once_and_asks_once_more(connect, remote):
    remote.answers = [answer(401), answer()]
    events: list[str] = []
    auth = Countdown()
    client = connect(auth=auth, pace=lambda: events.append("pace"), before_write=lambda: events.append("fence"))
    client.request("PATCH", PATH, document={"a": 1})
    assert [(one.headers["token"], one.body) for one in remote.seen] == [("1", b'{"a":1}'), ("2", b'{"a":1}')]
    assert events == ["pace", "fence"] * 2


def test_a_second_401_is_a_wrong_setting(connect, remote):
    remote.answers = [answer(401)]
    error = ask(connect(auth=Countdown()), "PATCH")
    assert type(error) is Misconfigured
    assert len(remote.seen) == 2


def test_a_token_that_never_changes_is_not_tried_again(connect, remote):
    remote.answers = [answer(401)]
    ask(connect(), "PATCH")
    assert len(remote.seen) == 1


def test_a_renewal_that_fails_says_so(connect, remote):
    remote.answers = [answer(401)]
    auth = Countdown()
    auth.headers()
    auth.fault = Unavailable("the token host is away", after=5)
    assert ask(connect(auth=auth), "PATCH") is auth.fault


def test_many_threads_with_one_refused_token_renew_it_once():
    auth = Countdown()
    old = auth.headers()
    together = threading.Barrier(8)

    def renew(_: int) -> Any:
        together.wait()
        return auth.renewed(old)

    with ThreadPoolExecutor(8) as pool:
        fresh = list(pool.map(renew, range(8)))
    assert (auth.fetched, {headers["token"] for headers in fresh}) == (2, {"2"})


class Crowd:
    """A lock that knows how many came to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._count.release()
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def wait_for(self, number: int) -> None:
        for _ in range(number):
            assert self._count.acquire(timeout=10)


def test_who_waited_for_a_renewal_shares_its_failure_and_the_next_tries_again():
    crowd = Crowd()

    class Away(Countdown):
        def fetch(self) -> tuple[dict[str, str], float]:
            if self.fault is not None:
                crowd.wait_for(8)
            return super().fetch()

    auth = Away()
    auth._lock = crowd  # type: ignore[assignment]
    auth.fault = Misconfigured("wrong secret", status=401)

    def fail(_: int) -> tuple[type, str, int | None]:
        with pytest.raises(Unavailable) as caught:
            auth.headers()
        return type(caught.value), caught.value.reason, caught.value.status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fail, range(8))) == {(Misconfigured, "wrong secret", 401)}
    assert auth.fetched == 1
    auth.fault = None
    assert auth.headers()["token"] == "2"


@pytest.mark.parametrize("value", ["Token a\nb", "Token ü"])
def test_a_token_that_no_header_may_hold_is_a_wrong_setting(connect, value):
    error = ask(connect(auth=StaticToken("Authorization", value)), "GET")
    assert type(error) is Misconfigured
    assert value not in error.reason


TOKEN_REPLIES = [
    (400, '{"error": "invalid_scope", "error_description": "Bad"}', {}, Misconfigured, "invalid_scope; Bad", None),
    (401, '{"error": "x", "error_description": "no s3cret here"}', {}, Misconfigured, "x; no *** here", None),
    (403, HTML, {}, Misconfigured, "502 Bad Gateway", None),
    (404, "", {}, Misconfigured, "Not Found", None),
    (302, "", {"Location": "http://127.0.0.1:1/"}, Misconfigured, "redirects to http://127.0.0.1:1/", None),
    (429, "", {"Retry_After": "9"}, Unavailable, "Too Many Requests", 9.0),
    (500, "", {}, Unavailable, "Internal Server Error", None),
    (503, "", {"Retry_After": "9"}, Unavailable, "Service Unavailable", 9.0),
]


def oauth(remote: Remote, **options: Any) -> OAuthClientCredentials:
    return OAuthClientCredentials(f"{remote.url}/token", "id", "s3cret", scope="openid", **options)


@pytest.mark.parametrize(("status", "body", "headers", "expected", "words", "after"), TOKEN_REPLIES)
def test_what_a_token_host_may_answer(remote, status, body, headers, expected, words, after):
    remote.answers = [answer(status, body, **headers)]
    with pytest.raises(Unavailable) as caught:
        oauth(remote).headers()
    assert type(caught.value) is expected
    assert str(caught.value) == f"POST {remote.url}/token: {status} {words}"
    assert (caught.value.after, caught.value.status) == (after, status)


@pytest.mark.parametrize("body", ["", "{}", "[]", '{"access_token": 5}', '{"access_token": "x", "expires_in": "y"}'])
def test_a_token_reply_without_a_token(remote, body):
    remote.answers = [answer(200, body)]
    with pytest.raises(Unavailable, match="without a token") as caught:
        oauth(remote).headers()
    assert type(caught.value) is Unavailable


def test_a_token_host_that_does_not_answer(remote, closed_port):
    remote.answers = [remote.silence]
    with pytest.raises(Unavailable, match="timed out"):
        oauth(remote, timeout=0.2).headers()
    remote.url = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(Unavailable, match="Connection refused"):
        oauth(remote).headers()


def test_the_form_that_asks_for_a_token(remote):
    remote.answers = [answer(200, '{"access_token": "abc", "expires_in": 300, "token_type": "Bearer"}')]
    assert oauth(remote).headers() == {"Authorization": "Bearer abc"}
    asked = remote.seen[0]
    assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert asked.body == b"grant_type=client_credentials&client_id=id&client_secret=s3cret&scope=openid"
    assert "Authorization" not in asked.headers


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1.10", "1.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("2", "2.0"),
        ("-0.0001", "-0.0001"),
        ("0.10000000000000001", "0.10000000000000001"),
        ("12345678901234567890.12", "12345678901234567890.12"),
        ("1E+400", "1E+400"),
    ],
)
def test_a_decimal_is_sent_as_a_number_of_its_value(number, text):
    sent = to_json({"lines": [{"n": Decimal(number), "ü": None}, ("x", True)]})
    assert sent.decode() == f'{{"lines":[{{"n":{text},"\\u00fc":null}},["x",true]]}}'
    assert json.loads(sent, parse_float=Decimal, parse_int=Decimal)["lines"][0]["n"] == Decimal(number)


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), float("nan")])
@pytest.mark.parametrize("beside", [Decimal("1"), Decimal("0.10000000000000001")])
def test_what_json_has_no_number_for_is_an_error(value, beside):
    with pytest.raises(ValueError, match="JSON"):
        to_json([beside, value])


def test_what_json_has_no_word_for_is_an_error():
    with pytest.raises(TypeError, match="set is no JSON"):
        to_json({"a": {1}})


def test_a_decimal_goes_there_and_back(connect, remote):
    remote.answers = [lambda handler: answer(200, remote.seen[-1].body)(handler)]
    document = {"price": Decimal("19.99"), "many": Decimal("0.10000000000000001"), "id": 7, "text": "1.0"}
    assert connect().request("PUT", PATH, document=document) == document
