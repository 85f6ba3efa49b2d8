"""Two accounts of a system side by side, in real processes: one that is down holds up no other, and loses nothing."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ledger import queries
from tests.flows.harness import SETTLED, Fleet, Remote, a_fleet, a_remote, wait_for
from tests.flows.killing import ON_SQLITE
from tests.flows.test_kills import EFFECTS
from tests.services import PrivateValkey
from workers.systems import NAMES

ACCOUNTS = {
    system: accounts
    for system, accounts in {"cloudsuite": ("main", "outlet"), "doshii": ("north", "south")}.items()
    if system in NAMES
}
UP = [f"{system}:{up}" for system, (up, _) in ACCOUNTS.items()]
DOWN = [f"{system}:{down}" for system, (_, down) in ACCOUNTS.items()]
ORDERS = 8

Remotes = dict[str, Remote]
"""By lane: system:account."""


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    """Two webshops and two restaurants."""
    with ExitStack() as stack:
        yield {
            f"{system}:{account}": stack.enter_context(a_remote(system, account))
            for system, accounts in ACCOUNTS.items()
            for account in accounts
        }


@pytest.fixture
def fleet(remotes: Remotes, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    names = {f"{system.upper()}_ACCOUNTS": ",".join(accounts) for system, accounts in ACCOUNTS.items()}
    rate = {"CLOUDSUITE_MAIN_RATE": "200"}
    with a_fleet(*remotes.values(), home=tmp_path, broker=valkey.url, database=ledger_url, **names, **rate) as opened:
        yield opened


def settled(fleet: Fleet, lane: str, remote: Remote) -> bool:
    """Whether all orders of an account are known, and none goes on by itself."""
    rows = [row for row in fleet.rows_of_all() if f"{row['system']}:{row['account']}" == lane]
    return len(rows) == len(remote.all_orders()) and all(row["state"] in SETTLED for row in rows)


@ON_SQLITE
def test_one_account_down_does_not_slow_the_other(fleet: Fleet, remotes: Remotes):
    for lane in DOWN:
        remotes[lane].faults({"rate": 1.0, "kinds": ["500_before", "lost_request"]})
    fleet.start("beat")
    fleet.started("worker")
    for remote in remotes.values():
        remote.add(ORDERS)
    wait_for(lambda: all(settled(fleet, lane, remotes[lane]) for lane in UP), fleet.why)
    assert not any(settled(fleet, lane, remotes[lane]) for lane in DOWN)
    wait_for(lambda: set(queries.closed_gates(fleet.ledger)) == set(DOWN), fleet.why)
    assert not any(row["state"] in ("parked", "in_doubt") for row in fleet.rows_of_all()), fleet.why()

    for lane in DOWN:
        remotes[lane].faults()
    wait_for(lambda: all(settled(fleet, lane, remotes[lane]) for lane in (*UP, *DOWN)), fleet.why)
    for lane, remote in remotes.items():
        system, account = lane.split(":")
        assert queries.cursor(fleet.ledger, f"{system}.poll:{account}") is not None
        moves = {kind: most for kind, most in remote.most_per_order().items() if "->" in kind or kind in EFFECTS}
        assert moves
        assert set(moves.values()) == {1}, (lane, moves)
    states = {row["state"] for row in fleet.rows_of_all()}
    assert states == {"done"}, fleet.why()
    assert len(fleet.erp_rows("erp_order")) == ORDERS * len(remotes)
