"""TastyIgniter's client against its imitation, over real HTTP. The numbers of the traps are those of the table in
docs/systems/tastyigniter.md; the sections those of contracts/tastyigniter.md."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask

from clients.base import StaticToken
from clients.tastyigniter import PAGE_SIZE, Absent, Invalid, TastyIgniter
from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from sandbox import base
from sandbox.base import FaultRule
from sandbox.tastyigniter import Options, create_app
from tests.unit.clients.conftest import Remote, answer

PROFILES = ("P1", "P1b", "P2", "P3")


class Site:
    """A running imitation, and clients of it."""

    def __init__(self, **options: Any) -> None:
        self.options = Options(**options)
        self.app: Flask = create_app(self.options)
        self.control = base.control_of(self.app)
        self.url = ""
        self._clients: list[TastyIgniter] = []

    def client(self, token: str | None = None) -> TastyIgniter:
        auth = StaticToken("Authorization", f"Bearer {self.options.token if token is None else token}")
        self._clients.append(TastyIgniter(f"{self.url}/api", auth=auth, timeout=5.0))
        return self._clients[-1]

    def add(self, count: int = 1, **overrides: Any) -> list[int]:
        invented = self.control.backend.invent(count, 1, True)
        return [int(one) for one in self.control.backend.add_orders({**order, **overrides} for order in invented)]

    def order(self, number: int) -> dict[str, Any]:
        return self.control.backend.one_order(str(number))

    def edit(self, number: int, **patch: Any) -> None:
        self.control.backend.edit_order(str(number), patch)

    def fail(self, kind: str, **rule: Any) -> None:
        self.control.faults.set([FaultRule(kinds=(kind,), **rule)])

    def kinds(self, number: int) -> list[str]:
        return [kind for effect in self.control.backend.effects.of(number) for kind in effect.kinds]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def a_site(**options: Any) -> Iterator[Site]:
    site = Site(**options)
    with base.running(site.app) as site.url:
        yield site
        site.close()


@pytest.fixture
def site_with() -> Iterator[Callable[..., Site]]:
    """`site_with(profile="P3")`; one a test."""
    opened: list[Any] = []

    def open_site(**options: Any) -> Site:
        opened.append(a_site(**options))
        site: Site = opened[-1].__enter__()
        return site

    yield open_site
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture(params=["P1", "P3"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """In the profile of the seed, then in today's."""
    with a_site(profile=request.param) as opened:
        yield opened


def error_of(call: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.raises(StepError) as caught:
        call(*arguments, **named)
    return caught.value


def shown_id(document: Any) -> int:
    inner = document.get("data", document)
    return int(inner.get("order_id") or inner["id"])


# === Reads ==================================================================================================


@pytest.mark.parametrize("profile", PROFILES)
def test_trap_01_every_profile_is_listed_read_and_written(site_with, profile):
    site = site_with(profile=profile)
    numbers = site.add(3)
    client = site.client()
    assert [[shown_id(row) for row in page] for page in client.newest_orders()] == [numbers[::-1]]
    assert shown_id(client.order(numbers[0], history=True)) == numbers[0]
    client.set_status(numbers[0], 3)
    assert site.order(numbers[0])["status_id"] == 3
    assert client.token_user()
    assert {row["status_id"] for row in client.statuses()} == set(range(1, 10))


@pytest.mark.parametrize("profile", PROFILES)
def test_trap_06_pages_are_read_until_one_is_short(site_with, profile):
    site = site_with(profile=profile)
    numbers = site.add(2 * PAGE_SIZE)
    pages = [[shown_id(row) for row in page] for page in site.client().newest_orders()]
    assert [number for page in pages for number in page] == numbers[::-1]
    assert [len(page) for page in pages] == [PAGE_SIZE, PAGE_SIZE]


def test_trap_06_a_page_is_read_when_it_is_asked_for(site):
    site.add(PAGE_SIZE + 1)
    next(site.client().newest_orders())
    counts = site.app.test_client().get("/_sandbox/counts").get_json()
    assert counts["requests"]["GET"] == 1


def test_trap_07_repeated_rows_come_once(site):
    site.options.repeated_rows = 3
    numbers = site.add(PAGE_SIZE + 10)
    found = [shown_id(row) for page in site.client().newest_orders() for row in page]
    assert found == numbers[::-1]


def rows(*ids: int) -> list[dict[str, Any]]:
    return [{"order_id": ident} for ident in ids]


@pytest.mark.parametrize(
    "more",
    [{"meta": {"current_page": 1, "last_page": 2}}, {"meta": {"pagination": {"current_page": 1, "total_pages": 2}}}],
)
def test_trap_06_a_site_that_gives_less_than_was_asked_for_says_so(remote, connect_to, more):
    remote.answers = [answer(200, json.dumps({"data": rows(*ids), **more})) for ids in ((3, 2), (1,), ())]
    assert [len(page) for page in connect_to(remote).newest_orders()] == [2, 1]
    assert "page=2" in remote.seen[1].target


def test_trap_06_a_site_that_does_not_page_is_not_read_for_ever(remote, connect_to):
    everything = json.dumps(rows(*range(PAGE_SIZE + 5)))
    remote.answers = [answer(200, everything)]
    assert len(list(connect_to(remote).newest_orders())) == 1
    assert len(remote.seen) == 2


def test_trap_06_the_sort_and_the_page_size_are_on_every_page(remote, connect_to):
    remote.answers = [answer(200, '{"data": []}')]
    assert list(connect_to(remote).newest_orders(location=4)) == []
    assert remote.seen[0].target == "/orders?sort=order_id+desc&pageLimit=100&page=1&location=4"


@pytest.mark.parametrize("body", ['{"data": {}}', '{"message": "maintenance"}', "[1]", "3", "<html></html>"])
def test_what_is_no_list_is_tried_again(remote, connect_to, body):
    remote.answers = [answer(200, body)]
    assert isinstance(error_of(list, connect_to(remote).newest_orders()), TryLater)


def test_trap_08_nothing_is_included_but_the_history(remote, connect_to):
    client = connect_to(remote)
    client.order(7)
    client.order(7, history=True)
    assert [seen.target for seen in remote.seen] == ["/orders/7", "/orders/7?include=status_history"]


@pytest.fixture
def connect_to(remote: Remote) -> Iterator[Callable[[Remote], TastyIgniter]]:
    made: list[TastyIgniter] = []

    def connect(to: Remote) -> TastyIgniter:
        made.append(TastyIgniter(to.url, auth=StaticToken("Authorization", "Bearer 1|secret-token"), timeout=5.0))
        return made[-1]

    yield connect
    for client in made:
        client.close()


# === Writes =================================================================================================


def test_trap_02_a_write_sends_the_status_alone(remote, connect_to):
    client = connect_to(remote)
    client.set_status(7, 3)
    client.set_status(7, 3, "ERP order SO-1")
    client.set_status(7, 3, first_name="Ann", last_name="Test", order_type="delivery")
    assert [json.loads(seen.body) for seen in remote.seen] == [
        {"status_id": 3},
        {"status_id": 3, "status_comment": "ERP order SO-1"},
        {"status_id": 3, "first_name": "Ann", "last_name": "Test", "order_type": "delivery"},
    ]
    assert {(seen.method, seen.target) for seen in remote.seen} == {("PATCH", "/orders/7")}


def test_trap_02_a_delivery_changes_its_status_though_its_address_is_not_sent(site_with):
    site = site_with(profile="P3")
    (number,) = site.add(order_type="delivery")
    site.client().set_status(number, 4)
    assert site.order(number)["status_id"] == 4
    error = error_of(site.client().set_status, number, 3, order_type="delivery")
    assert isinstance(error, Invalid)
    assert error.fields == {"address.address_1"}


def test_trap_03_each_call_is_a_row_and_a_mail(site_with):
    site = site_with(profile="P3")
    (number,) = site.add()
    for _ in range(2):
        site.client().set_status(number, 3)
    assert site.kinds(number).count("mail:3") == 2


def test_trap_23_a_422_names_its_fields(site_with):
    site = site_with(profile="P3", demands_names=True)
    (number,) = site.add()
    error = error_of(site.client().set_status, number, 3)
    assert isinstance(error, Invalid)
    assert (error.status, error.fields) == (422, frozenset({"first_name", "last_name", "order_type"}))


def test_a_422_without_fields_is_one_all_the_same(remote, connect_to):
    remote.answers = [answer(422, '{"message": "no"}')]
    assert error_of(connect_to(remote).set_status, 7, 3).fields == frozenset()


@pytest.mark.parametrize("profile", PROFILES)
def test_trap_29_whatever_a_delete_answers_the_order_is_gone(site_with, profile):
    site = site_with(profile=profile)
    (number,) = site.add()
    client = site.client()
    client.delete_order(number)
    assert isinstance(error_of(client.order, number), Absent)
    assert isinstance(error_of(client.delete_order, number), Absent)


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "html_502"])
def test_a_write_without_an_answer_is_unclear(site, kind):
    (number,) = site.add()
    site.fail(kind)
    assert isinstance(error_of(site.client().set_status, number, 3), Unclear)


# === Errors =================================================================================================


def test_trap_20_no_such_order(site):
    error = error_of(site.client().order, 999)
    assert isinstance(error, Absent)
    assert error.status == 404


@pytest.mark.parametrize("form", ["empty", "html", "405"])
def test_trap_20_an_action_that_is_switched_off_is_no_missing_order(site, form):
    (number,) = site.add()
    site.options.switched_off, site.options.switched_off_as = ("show", "update"), form
    read, written = error_of(site.client().order, number), error_of(site.client().set_status, number, 3)
    assert type(read) is Misconfigured
    assert type(written) is Refused
    for error in (read, written):
        assert "must allow the action" in error.reason


def test_trap_20_an_address_without_the_prefix_is_a_wrong_setting(site):
    (number,) = site.add()
    client = TastyIgniter(site.url, auth=StaticToken("Authorization", f"Bearer {site.options.token}"), timeout=5.0)
    error = error_of(client.order, number)
    client.close()
    assert type(error) is Misconfigured
    assert "TASTYIGNITER_URL must end with its API's prefix" in error.reason


@pytest.mark.parametrize(
    ("access", "call"),
    [
        ({"abilities": ["orders:read", "orders:write"]}, lambda client, number: client.order(number)),
        ({"abilities": ["orders:*"], "staff": False}, lambda client, number: client.set_status(number, 3)),
    ],
)
def test_trap_21_a_403_says_which_rights_are_needed(site_with, access, call):
    site = site_with(profile="P3", tokens={"2|other": access})
    (number,) = site.add(customer_id=1)
    error = error_of(call, site.client("2|other"), number)
    assert type(error) is Misconfigured
    assert "`orders:*`" in error.reason
    assert "staff" in error.reason


def test_trap_21_the_literal_ability_is_enough(site_with):
    site = site_with(profile="P3", tokens={"2|other": {"abilities": ["orders:*"]}})
    (number,) = site.add()
    assert shown_id(site.client("2|other").order(number)) == number


def test_a_token_that_nobody_knows(site):
    error = error_of(site.client("9|wrong").token_user)
    assert type(error) is Misconfigured
    assert "9|wrong" not in error.reason


def test_trap_22_debug_and_sql_are_never_shown(remote, connect_to):
    body = {
        "message": "SQLSTATE[23000]: broken (Connection: mysql, SQL: insert into orders values (Ann, ann@example.com))",
        "status_code": 500,
        "debug": {"file": "app/Secret.php", "line": 1, "trace": ["#0 {main}"]},
    }
    remote.answers = [answer(500, json.dumps(body)), answer(404, json.dumps({**body, "status_code": 404}))]
    for error in (error_of(connect_to(remote).order, 7), error_of(connect_to(remote).order, 7)):
        assert "SQLSTATE[23000]: broken" in error.reason
        for hidden in ("Secret.php", "{main}", "insert", "ann@example.com"):
            assert hidden not in error.reason


def test_trap_22_debug_of_the_imitation(site):
    assert site.options.debug
    assert "Sandbox.php" not in error_of(site.client().order, 999).reason


def test_trap_32_too_many_requests_wait_as_long_as_they_are_told(site):
    (number,) = site.add()
    site.fail("429", retry_after=7)
    error = error_of(site.client().order, number)
    assert type(error) is Unavailable
    assert error.after == 7


def test_a_500_is_tried_again(site):
    site.fail("500_before")
    assert type(error_of(site.client().order, 1)) is TryLater
