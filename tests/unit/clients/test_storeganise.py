"""Storeganise's client against its imitation, over real HTTP. The traps are those of section 11 of
contracts/storeganise.md."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from clients.base import StaticToken
from clients.storeganise import LEAST_PAGE, ROWS_READ_TWICE, Storeganise, api_key
from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from sandbox import storeganise as sandbox
from tests.flows.harness import Remote, a_remote
from tests.unit.clients.conftest import Remote as Scripted
from tests.unit.clients.conftest import answer

STEPS = ["order_start", "items_pickEmptyBoxes", "items_deliver", "items_collect", "items_store"]


class Tenant:
    """A running imitation and clients of it."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.backend: Any = remote.control.backend
        self._clients: list[Storeganise] = []

    def client(self, url: str | None = None, **options: Any) -> Storeganise:
        options = {"auth": api_key("sandbox-key"), "timeout": 5.0, **options}
        self._clients.append(Storeganise(url or self.remote.url, **options))
        return self._clients[-1]

    def add(self, *orders: dict[str, Any]) -> list[str]:
        return list(self.backend.add_orders(orders or [{}]))

    def step(self, order_id: str, kind: str) -> dict[str, Any]:
        [found] = [step for step in self.remote.order(order_id)["job"]["steps"] if step["type"] == kind]
        return dict(found)

    def reads(self) -> int:
        counts = self.remote.app.test_client().get("/_sandbox/counts").get_json()
        return int(counts["requests"].get("GET", 0))

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    with a_remote("storeganise") as remote:
        tenant = Tenant(remote)
        yield tenant
        tenant.close()


def error_of(call: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.raises(StepError) as caught:
        call(*arguments, **named)
    return caught.value


# -- reads ------------------------------------------------------------------------------------------------------------


def test_trap_07_an_order_comes_with_the_steps_of_its_job(tenant):
    [order_id] = tenant.add({"customFields": {"notes": "Παρακαλώ τηλεφωνήστε"}})
    document = tenant.client().order(order_id)
    assert [step["type"] for step in document["job"]["steps"]] == STEPS
    assert document["customFields"] == {"notes": "Παρακαλώ τηλεφωνήστε"}


def test_trap_02_a_jobs_id_is_no_orders(tenant):
    [order_id] = tenant.add()
    client = tenant.client()
    job_id = client.order(order_id)["jobId"]
    error = error_of(client.order, job_id)
    assert (type(error), error.status) == (Refused, 404)
    assert error.reason == f"GET /api/v1/admin/valet-orders/{job_id}: 404 No such order.; code: order_not_found"
    assert client.job(job_id)["valetOrderId"] == order_id


def test_the_items_of_an_order(tenant):
    first, second = tenant.add({"kind": "bulky", "items": [sandbox.SOFA, sandbox.BICYCLE]}, {})
    client = tenant.client()
    sid = tenant.remote.order(first)["sid"]
    document = client.order(first, items=True)
    assert [(row["sid"], row["state"]) for row in document["items"]] == [
        (f"{sid}-1", "with_customer"),
        (f"{sid}-2", "with_customer"),
    ]
    assert [step["type"] for step in document["job"]["steps"]] == ["order_start", "items_collect", "items_store"]
    assert client.order(second, items=True)["items"] == []
    assert "items" not in client.order(first)


def test_items_by_their_sids_a_batch_at_a_time(tenant):
    [order_id] = tenant.add({"boxes": [{"itemTypeId": sandbox.STANDARD_BOX, "quantity": 60}]})
    sid = tenant.remote.order(order_id)["sid"]
    wanted = [f"{sid}-{number}" for number in range(1, 61)]
    client = tenant.client()
    assert [row["sid"] for row in client.items([*wanted, "V-0"])] == wanted
    assert tenant.reads() == 2
    assert client.items([]) == []


@pytest.mark.parametrize("wrapper", [None, "data", "results", "items"])
def test_a_list_in_an_object_is_read_too(tenant, wrapper):
    tenant.backend.options.list_in = wrapper
    [order_id] = tenant.add()
    client = tenant.client()
    assert [[row["id"] for row in page] for page in client.orders()] == [[order_id]]
    assert len(client.items([f"{tenant.remote.order(order_id)['sid']}-1"])) == 1


def test_the_list_is_read_to_its_end(tenant):
    ids = tenant.add(*({} for _ in range(65)))
    tenant.backend.options.page_max = 30  # fewer than we ask for
    pages = list(tenant.client().orders())
    found = [row["id"] for page in pages for row in page]
    assert sorted(found) == sorted(ids)
    assert len(found) == len(set(found))


def test_a_row_that_moves_while_we_read_hides_no_other(tenant):
    ids = tenant.add(*({} for _ in range(LEAST_PAGE * 2)))
    pages = tenant.client().orders(limit=LEAST_PAGE)
    found = [row["id"] for row in next(pages)]
    for order_id in found[: ROWS_READ_TWICE - 1]:
        tenant.remote.edit(order_id, timeslot="1600-1800")
    found += [row["id"] for page in pages for row in page]
    assert sorted(found) == sorted(ids)
    assert len(found) == len(set(found))


def test_a_short_list_takes_one_request(tenant):
    tenant.add({}, {})
    assert len(list(tenant.client().orders())) == 1
    assert tenant.reads() == 1


def test_what_the_list_is_asked_for(tenant, remote: Scripted):
    remote.answers = [answer(200, "[]")]
    assert (
        list(tenant.client(remote.url).orders(updated_after="2026-11-24T08:00:00.000Z", include="job", limit=50)) == []
    )
    [seen] = remote.seen
    path = "/api/v1/admin/valet-orders"
    assert seen.target == f"{path}?updatedAfter=2026-11-24T08%3A00%3A00.000Z&limit=50&offset=0&include=job"
    assert seen.headers["Authorization"] == "ApiKey sandbox-key"


def test_the_bound_is_inclusive(tenant):
    [order_id] = tenant.add()
    client = tenant.client()
    updated = tenant.remote.order(order_id)["updated"]
    assert [row["id"] for page in client.orders(updated_after=updated) for row in page] == [order_id]
    assert list(client.orders(updated_after="2999-01-01T00:00:00.000Z")) == []


@pytest.mark.parametrize("text", ["{}", '{"data": 1}', "[1]", '[{"sid": "x"}]', "7", "<html>maintenance</html>"])
def test_what_is_no_list(tenant, remote: Scripted, text):
    remote.answers = [answer(200, text)]
    error = error_of(list, tenant.client(remote.url).orders())
    assert type(error) is TryLater
    assert error.reason.startswith("GET /api/v1/admin/valet-orders: 200, but what came is not ")


def test_a_list_that_repeats_itself_ends(tenant, remote: Scripted):
    remote.answers = [answer(200, json.dumps([{"id": str(number)} for number in range(LEAST_PAGE)]))]
    assert len(list(tenant.client(remote.url).orders(limit=LEAST_PAGE))) == 1
    assert len(remote.seen) == 2


def test_amounts_are_decimals(tenant):
    [order_id] = tenant.add({"charges": [{"title": "Tape", "amount": 2.35, "quantity": 1}]})
    assert tenant.client().order(order_id)["charges"][0]["amount"] == Decimal("2.35")


def test_where_staff_see_an_order(tenant):
    client = tenant.client("https://acme.storeganise.example.test/")
    assert client.page_of("65a1") == "https://acme.storeganise.example.test/admin/valet-orders/65a1"


# -- writes -----------------------------------------------------------------------------------------------------------


def test_from_the_start_to_the_shelf_as_the_seed_has_it(tenant):
    [order_id] = tenant.add({"boxes": [{"itemTypeId": sandbox.STANDARD_BOX, "quantity": 1}]})
    client = tenant.client()
    box = f"{tenant.remote.order(order_id)['sid']}-1"
    for kind, command in zip(STEPS, (None, "add", "deliver", "collect", "store"), strict=True):
        if command is not None:
            client.command_items(f"valetOrder_{command}", [box], order_id, "S1" if command == "store" else None)
        client.complete_step(order_id, tenant.step(order_id, kind)["id"])
    [item] = client.items([box])
    assert (item["state"], item["location"]) == ("stored", "S1")
    assert tenant.remote.order(order_id)["state"] == "completed"


def test_trap_08_only_what_is_sent_changes(tenant):
    [order_id] = tenant.add({"customFields": {"notes": "Third floor"}, "date": "2026-12-01"})
    client = tenant.client()
    before = client.order(order_id)
    client.edit_order(order_id, {"customFields": {"erpNumber": "SO-1"}})
    after = client.order(order_id)
    assert after["customFields"] == {"notes": "Third floor", "erpNumber": "SO-1"}
    moved = {"customFields": None, "updated": None}
    assert after | moved == before | moved


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"customFields": {"unheardOf": "x"}}, "Not defined as custom fields: unheardOf."),
        ({"date": "soon"}, "date must be YYYY-MM-DD."),
    ],
)
def test_a_bad_value_is_refused_in_their_words(tenant, fields, words):
    [order_id] = tenant.add()
    error = error_of(tenant.client().edit_order, order_id, fields)
    assert (type(error), error.status) == (Refused, 400)
    assert words in error.reason


def test_an_amount_is_sent_as_it_is(tenant, remote: Scripted):
    tenant.client(remote.url).edit_order("a", {"charges": [{"title": "x", "amount": Decimal("12.10")}]})
    assert remote.seen[0].body == b'{"charges":[{"title":"x","amount":12.1}]}'


def test_the_answers_of_writes_do_not_matter(tenant, remote: Scripted):
    remote.answers = [answer(200, "whatever"), answer(204, b""), answer(200, "[]")]
    client = tenant.client(remote.url)
    client.complete_step("a", "b")
    client.command_items("valetOrder_add", ["V-1"], "a")
    client.edit_order("a", {"date": "2026-12-01"})
    assert [(one.method, one.target) for one in remote.seen] == [
        ("PUT", "/api/v1/admin/valet-orders/a/steps/b"),
        ("PUT", "/api/v1/admin/items"),
        ("PUT", "/api/v1/admin/valet-orders/a"),
    ]
    assert json.loads(remote.seen[1].body) == {
        "command": "valetOrder_add",
        "itemSids": ["V-1"],
        "data": {"valetOrderId": "a"},
    }


def test_ids_are_parts_of_a_path_and_no_more(tenant, remote: Scripted):
    client = tenant.client(remote.url)
    client.complete_step("a/b", "c?d")
    assert remote.seen[0].target == "/api/v1/admin/valet-orders/a%2Fb/steps/c%3Fd"


# -- what goes wrong: section 9 ---------------------------------------------------------------------------------------


FAULTS = [
    # fault, error of a read, error of a write, status, whether the write took effect
    ("500_before", TryLater, Unclear, 500, False),
    ("500_after", TryLater, Unclear, 500, True),
    ("html_502", TryLater, Unclear, 502, False),
    ("lost_request", TryLater, Unclear, None, False),
    ("lost_answer", TryLater, Unclear, None, True),
    ("slow", TryLater, Unclear, None, True),
    ("429", Unavailable, Unavailable, 429, False),
]


@pytest.mark.parametrize(("fault", "reading", "writing", "status", "done"), FAULTS)
def test_faults(tenant, fault, reading, writing, status, done):
    [order_id] = tenant.add()
    client = tenant.client(timeout=0.5)
    step = tenant.step(order_id, "order_start")["id"]
    tenant.remote.faults({"kinds": (fault,), "slow_seconds": 1.0, "retry_after": 7})
    errors = [error_of(client.order, order_id), error_of(client.complete_step, order_id, step)]
    assert [type(error) for error in errors] == [reading, writing]
    assert [error.status for error in errors] == [status, status]
    assert [error.after for error in errors] == [7.0 if fault == "429" else None] * 2
    assert (tenant.step(order_id, "order_start")["state"] == "completed") is done


def test_a_wrong_key_is_a_wrong_setting(tenant):
    error = error_of(tenant.client(auth=api_key("wr0ng")).order, "a")
    assert (type(error), error.status) == (Misconfigured, 401)
    assert "wr0ng" not in error.reason


def test_a_bearer_token_is_no_key(tenant):
    error = error_of(tenant.client(auth=StaticToken("Authorization", "Bearer sandbox-key")).order, "a")
    assert (type(error), error.status) == (Misconfigured, 401)


def test_a_key_that_may_only_read(tenant):
    tenant.backend.options.role = "api"
    [order_id] = tenant.add()
    client = tenant.client()
    assert client.order(order_id)["id"] == order_id
    error = error_of(client.complete_step, order_id, "x")
    assert (type(error), error.status) == (Misconfigured, 403)


def test_a_rate_limit(tenant):
    [order_id] = tenant.add()
    tenant.backend.options.rate_per_minute = 1
    client = tenant.client()
    client.order(order_id)
    error = error_of(client.order, order_id)
    assert type(error) is Unavailable
    assert 0 < (error.after or 0) <= 61
