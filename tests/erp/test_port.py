"""What every ERP adapter promises. All adapters run this file; see `ADAPTERS` in conftest.py."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from threading import Barrier

import pytest

from erp.port import ADAPTERS, KINDS, Erp, OutcomeUnknown, Rejected, Stage, open_erp
from orders.errors import Misconfigured, Refused, Unavailable, Unclear
from orders.model import Line, Order
from tests.erp.conftest import make_order

REF = "cloudsuite:default:1001"
OTHER = "doshii:north:88-b"


def everything(erp: Erp, limit: int = 100, cursor: str | None = None) -> tuple[list[tuple], str]:
    """All events after `cursor`, page by page, as (reference, kind), and the last cursor."""
    told: list[tuple] = []
    while True:
        page, cursor = erp.events(cursor, limit)
        assert len(page) <= limit
        told += [(event.reference, event.kind) for event in page]
        if not page:
            return told, cursor


def confirmed_stage(erp: Erp) -> Stage:
    """Where an order stands that was just put as confirmed."""
    return Stage.PENDING if erp.capabilities.number_at == "later" else Stage.CONFIRMED


# --- put and find ---------------------------------------------------------------------------------------------------


def test_find_creates_nothing(erp, side):
    assert erp.find(REF) is None
    assert erp.find(REF) is None
    assert side.orders() == []


def test_put_creates_the_order(erp, side, order):
    put = erp.put(REF, order, stage=Stage.CONFIRMED)

    assert put.reference == REF
    assert put.stage is confirmed_stage(erp)
    assert put.duplicates == ()
    assert put == erp.find(REF)
    assert side.orders() == [{"reference": REF, "notes": "Ring twice"}]


def test_the_number_comes_with_the_put_or_as_an_event(erp, side, order):
    put = erp.put(REF, order, stage=Stage.CONFIRMED)
    if erp.capabilities.number_at == "later":
        assert (put.number, put.lines) == (None, {})
        side.tell(REF, "numbered", {"order_number": "SO-1", "lines": {"a": 1, "b": 2}})
        put = erp.find(REF)
        assert (put.number, put.lines) == ("SO-1", {"a": 1, "b": 2})
    assert put.stage is Stage.CONFIRMED
    assert put.number
    assert set(put.lines) == {"a", "b"}
    assert len(set(put.lines.values())) == 2
    assert erp.put(REF, order, stage=Stage.CONFIRMED) == put


def test_two_puts_make_one_order(erp, side, order):
    first = erp.put(REF, order, stage=Stage.CONFIRMED)
    second = erp.put(REF, order, stage=Stage.CONFIRMED)

    assert first == second
    assert len(side.orders()) == 1
    assert set(side.lines(REF)) == {"a", "b"}


@pytest.mark.parametrize("stage", [Stage.DRAFT, Stage.CONFIRMED])
def test_eight_threads_make_one_order(side, order, stage):
    adapters = [side.open() for _ in range(2)]
    together = Barrier(8)

    def put(number: int):
        together.wait()
        return adapters[number % 2].put(REF, order, stage=stage)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(put, range(8)))

    assert all(result == results[0] for result in results)
    assert len(side.orders()) == 1
    assert set(side.lines(REF)) == {"a", "b"}


def test_orders_are_strangers_to_each_other(erp, side, order):
    references = [REF, REF + "1", OTHER, "doshii:default:88-b", "doshii:north:88-B", "doshii:north:88:b"]
    put = [erp.put(reference, order, stage=Stage.CONFIRMED) for reference in references]

    assert len(side.orders()) == len(references)
    numbers = [result.number for result in put if result.number]
    assert len(set(numbers)) == len(numbers)


def test_a_draft_is_confirmed(erp, side, order):
    assert erp.put(OTHER, order, stage=Stage.DRAFT).stage is Stage.DRAFT
    assert erp.find(OTHER).stage is Stage.DRAFT
    assert erp.put(OTHER, order, stage=Stage.CONFIRMED).stage is confirmed_stage(erp)
    assert erp.find(OTHER).stage is confirmed_stage(erp)
    assert len(side.orders()) == 1


def test_eight_threads_confirm_one_draft(side, erp, order):
    erp.put(OTHER, order, stage=Stage.DRAFT)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: erp.put(OTHER, order, stage=Stage.CONFIRMED), range(8)))
    assert {result.stage for result in results} == {confirmed_stage(erp)}
    assert len(side.orders()) == 1


def test_a_confirmed_order_never_becomes_a_draft_again(erp, order):
    confirmed = erp.put(REF, order, stage=Stage.CONFIRMED)
    assert erp.put(REF, order, stage=Stage.DRAFT) == confirmed
    assert erp.find(REF) == confirmed


def test_a_draft_may_change(erp, side):
    erp.put(OTHER, make_order(), stage=Stage.DRAFT)
    changed = make_order(quantity="3", notes="Ring once")
    changed = changed.with_lines((changed.lines[0], replace(changed.lines[1], key="c")))
    erp.put(OTHER, changed, stage=Stage.DRAFT)

    assert side.orders() == [{"reference": OTHER, "notes": "Ring once"}]
    assert set(side.lines(OTHER)) == {"a", "c"}
    assert side.lines(OTHER)["a"][0] == 3


def test_a_confirmed_order_does_not_change_in_silence(erp, side, order):
    erp.put(REF, order, stage=Stage.CONFIRMED)
    with pytest.raises(Rejected, match="lines") as caught:
        erp.put(REF, make_order(quantity="3"), stage=Stage.CONFIRMED)
    assert caught.value.code == "different"
    assert side.lines(REF)["a"][0] == 2


def test_only_draft_and_confirmed_can_be_put(erp, order):
    with pytest.raises(ValueError, match="not as cancelled"):
        erp.put(REF, order, stage=Stage.CANCELLED)


def test_a_reference_must_be_ours(erp, order):
    with pytest.raises(ValueError, match="system:account:external-id"):
        erp.put("1001", order, stage=Stage.CONFIRMED)


# --- Values ---------------------------------------------------------------------------------------------------------


def test_decimals_are_exact(erp, side):
    amounts = [Decimal(text) for text in ("0.1", "1.2345", "1000000.000001", "99999999999999.999999", "1E+3")]
    lines = tuple(Line(str(i), i, "SKU-1", amount, "", None, amount, -amount) for i, amount in enumerate(amounts))
    erp.put(REF, make_order(total=Decimal("0.1")).with_lines(lines), stage=Stage.CONFIRMED)

    assert side.lines(REF) == {str(i): (amount, amount, -amount) for i, amount in enumerate(amounts)}


@pytest.mark.parametrize("amount", ["0.0000001", "1E+14", "NaN", "Infinity"])
def test_an_amount_the_erp_cannot_keep_is_refused_and_not_rounded(erp, side, amount):
    with pytest.raises(Rejected, match="quantity of line a") as caught:
        erp.put(REF, make_order(quantity=amount), stage=Stage.CONFIRMED)
    assert caught.value.field == "quantity of line a"
    assert side.orders() == []


@pytest.mark.parametrize(
    "notes", [None, "", "Zoë naïve 日本語 🍣 \u202e 'quoted' \"double\" %s :of {x} \\ \n\ttabs", "long " * 50_000]
)
def test_any_text_arrives_as_it_is(erp, side, notes):
    erp.put(REF, make_order(notes=notes), stage=Stage.CONFIRMED)
    assert side.orders() == [{"reference": REF, "notes": notes}]
    assert erp.put(REF, make_order(notes=notes), stage=Stage.CONFIRMED) == erp.find(REF)


def test_half_a_character_is_refused(erp, side):
    with pytest.raises(Rejected):
        erp.put(REF, make_order(notes="half \ud83c"), stage=Stage.CONFIRMED)
    assert side.orders() == []


def test_an_order_of_bare_bones(erp, side):
    bare = Order(None, None, (Line("1", 1, None, Decimal(1)),))
    assert erp.put(REF, bare, stage=Stage.CONFIRMED).stage is confirmed_stage(erp)
    assert side.lines(REF) == {"1": (1, None, None)}
    empty = Order(None, None, ())
    assert erp.put(OTHER, empty, stage=Stage.CONFIRMED).stage is confirmed_stage(erp)
    assert side.lines(OTHER) == {}


# --- Refused --------------------------------------------------------------------------------------------------------


def test_a_refused_order_says_why_in_the_erps_words(erp, side):
    side.refuse("Customer 4711 is blocked")
    with pytest.raises(Rejected) as caught:
        erp.put(REF, make_order(notes="please refuse me"), stage=Stage.CONFIRMED)
    assert caught.value.text == caught.value.reason == "Customer 4711 is blocked"
    assert isinstance(caught.value, Refused)
    assert erp.find(REF) is None
    assert erp.put(OTHER, make_order(), stage=Stage.CONFIRMED).stage is confirmed_stage(erp)


def test_an_order_refused_later_may_be_put_again(erp, side, order):
    erp.put(REF, order, stage=Stage.CONFIRMED)
    side.tell(REF, "refused", {"reason": "Customer 4711 is blocked"})
    refused = erp.find(REF)
    assert (refused.stage, refused.refusal) == (Stage.REFUSED, "Customer 4711 is blocked")

    # The person mended it, and the order changed meanwhile.
    again = erp.put(REF, make_order(quantity="3"), stage=Stage.CONFIRMED)
    assert (again.stage, again.refusal) == (confirmed_stage(erp), None)
    assert erp.find(REF) == again
    assert erp.put(REF, make_order(quantity="3"), stage=Stage.CONFIRMED) == again
    assert side.lines(REF)["a"][0] == 3

    side.tell(REF, "refused", {"reason": "still blocked"})
    assert erp.find(REF).refusal == "still blocked"
    side.tell(REF, "numbered", {"order_number": "SO-1", "lines": {}})
    assert erp.find(REF).stage is Stage.CONFIRMED


# --- Cancelled, completed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.DRAFT, Stage.CONFIRMED])
def test_cancel(erp, side, order, stage):
    erp.put(REF, order, stage=stage)
    assert erp.cancel(REF).stage is Stage.CANCELLED
    assert erp.find(REF).stage is Stage.CANCELLED
    assert erp.cancel(REF).stage is Stage.CANCELLED
    assert len(side.orders()) == 1


def test_cancel_of_nothing_makes_nothing(erp, side):
    assert erp.cancel(REF) is None
    assert side.orders() == []


@pytest.mark.parametrize("stage", [Stage.DRAFT, Stage.CONFIRMED])
def test_a_cancelled_order_never_comes_back(erp, order, stage):
    erp.put(REF, order, stage=stage)
    erp.cancel(REF)
    for wanted in (Stage.DRAFT, Stage.CONFIRMED):
        with pytest.raises(Rejected, match="cancelled") as caught:
            erp.put(REF, order, stage=wanted)
        assert caught.value.code == "cancelled"
    assert erp.find(REF).stage is Stage.CANCELLED


def test_what_the_erp_cancelled_never_comes_back(erp, side, order):
    erp.put(REF, order, stage=Stage.CONFIRMED)
    side.tell(REF, "cancelled")
    assert erp.find(REF).stage is Stage.CANCELLED
    with pytest.raises(Rejected, match="cancelled"):
        erp.put(REF, order, stage=Stage.CONFIRMED)


def test_a_completed_order_is_closed_and_stays(erp, side, order):
    erp.put(REF, order, stage=Stage.CONFIRMED)
    side.tell(REF, "completed")
    assert erp.find(REF).stage is Stage.CLOSED
    assert erp.put(REF, order, stage=Stage.CONFIRMED).stage is Stage.CLOSED
    assert erp.cancel(REF).stage is Stage.CLOSED


# --- Events ---------------------------------------------------------------------------------------------------------


def test_no_events(erp):
    told, cursor = erp.events(None, 10)
    assert told == []
    assert erp.events(cursor, 10) == ([], cursor)


def test_every_kind_arrives_in_order(erp, side):
    for kind in KINDS:
        side.tell(REF, kind, {"order_number": "SO-1"} if kind == "numbered" else {})
    events, _ = erp.events(None, 100)
    assert [event.kind for event in events] == list(KINDS)
    assert [event.error for event in events] == [None] * len(KINDS)
    assert len({event.id for event in events}) == len(KINDS)
    assert all(event.at.utcoffset().total_seconds() == 0 for event in events)
    assert events[0].at <= events[-1].at


@pytest.mark.parametrize(
    ("kind", "written", "data"),
    [
        ("numbered", {"order_number": 7, "lines": {"a": "10"}}, {"order_number": "7", "lines": {"a": 10}}),
        ("refused", {"reason": "Größe fehlt"}, {"reason": "Größe fehlt"}),
        ("shipped", {}, {}),
        ("shipped", {"lines": {"a": 1.5}, "tracking": 3}, {"lines": {"a": "1.5"}, "tracking": "3"}),
        ("stored", {"items": ["S-1"], "locations": {"S-1": "A4"}}, {"items": ["S-1"], "locations": {"S-1": "A4"}}),
    ],
)
def test_what_an_event_says(erp, side, kind, written, data):
    side.tell(REF, kind, written)
    [event], _ = erp.events(None, 10)
    assert (event.reference, event.kind, event.data) == (REF, kind, data)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages(erp, side, limit):
    for number in range(7):
        side.tell(f"cloudsuite:default:{number}", "completed")
    told, _ = everything(erp, limit)
    assert told == [(f"cloudsuite:default:{number}", "completed") for number in range(7)]


def test_a_cursor_goes_on_where_it_was(side, erp):
    side.tell(REF, "approved")
    _, cursor = everything(erp)
    side.tell(REF, "completed")
    again = side.open()
    told, cursor = everything(again, cursor=cursor)
    assert told == [(REF, "completed")]
    assert everything(again, cursor=cursor)[0] == []


def test_events_of_orders_we_never_put_arrive(erp, side):
    side.tell(OTHER, "shipped")
    assert everything(erp)[0] == [(OTHER, "shipped")]
    assert erp.find(OTHER) is None


def test_a_broken_cursor_is_told(erp):
    with pytest.raises(ValueError, match="cursor"):
        erp.events("yesterday", 10)


# --- Trouble --------------------------------------------------------------------------------------------------------


def test_an_erp_that_is_away(side, order):
    erp = side.away()
    calls = [
        lambda: erp.find(REF),
        lambda: erp.put(REF, order, stage=Stage.CONFIRMED),
        lambda: erp.cancel(REF),
        lambda: erp.events(None, 10),
        erp.prepare,
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            call()
        assert not isinstance(caught.value, Misconfigured)
    health = erp.probe()
    assert not health.ok
    assert health.text
    assert health.advice


def test_an_erp_that_is_not_prepared(side, order):
    erp = side.unprepared()
    calls = [
        lambda: erp.find(REF),
        lambda: erp.put(REF, order, stage=Stage.CONFIRMED),
        lambda: erp.cancel(REF),
        lambda: erp.events(None, 10),
    ]
    for call in calls:
        with pytest.raises(Misconfigured, match="orderfleet migrate"):
            call()
    health = erp.probe()
    assert not health.ok
    assert "orderfleet migrate" in health.advice


def test_prepare_may_be_repeated_and_run_by_several_at_once(side, order):
    erp = side.unprepared()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda adapter: adapter.prepare(), [side.open() for _ in range(4)]))
    assert erp.probe().ok
    erp.put(REF, order, stage=Stage.CONFIRMED)
    erp.prepare()
    assert len(side.orders()) == 1


def test_probe_of_a_healthy_erp_changes_nothing(erp, side):
    health = erp.probe()
    assert health.ok, health
    assert health.advice == ""
    assert side.orders() == []


def test_close_gives_connections_back_and_may_be_repeated(erp):
    erp.find(REF)
    erp.close()
    erp.close()


# --- Without an ERP -------------------------------------------------------------------------------------------------


def test_every_scheme_has_an_adapter_and_connects_to_nothing(tmp_path):
    urls = {scheme: f"{scheme}://user@erp.example.com/erp" for scheme in ADAPTERS}
    urls["sqlite"] = f"sqlite:///{tmp_path / 'erp.db'}"
    for url in urls.values():
        erp = open_erp(url)
        assert erp.capabilities.unique_ref in ("database", "application", "none")
        erp.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_names_those_we_know():
    with pytest.raises(ValueError, match=r"no ERP adapter for oracle://.*postgresql://") as caught:
        open_erp("oracle://erp.example.com/x")
    assert all(f"{scheme}://" in str(caught.value) for scheme in ADAPTERS)


def test_an_unanswered_write_makes_the_next_try_look_first():
    assert issubclass(OutcomeUnknown, Unclear)
