"""Storeganise: what the warehouse told of an order's items, what they are there, and what is to be done with them.

Nothing is written here: the steps in `tasks.storeganise` ask, and act. Contract: contracts/storeganise.md, 5.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orders.errors import Refused
from schemas import storeganise as schema
from schemas.storeganise import Item, RemoteOrder
from tasks.base import Account, Job

REMOTE = "remote:"
"""The source of a signal that says that staff completed a step begins with this, and the step's id follows."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the warehouse told of one step, all its signals together. `everything`: a signal named no items, and means
    all of them. `last`: no more will come; `kept`: the customer keeps these. `told`: whether it told anything."""

    told: bool
    items: tuple[str, ...]
    everything: bool
    locations: dict[str, str]
    kept: frozenset[str]
    last: bool


def report_of(job: Job, signal: str) -> Report:
    """A signal's `items` and `locations` add to those before it; `wrong` takes items back that an earlier one named.
    That staff completed the step is no word of the warehouse's."""
    told = [one.data for one in job.signals(signal) if not one.source.startswith(REMOTE)]
    items: dict[str, None] = {}
    locations: dict[str, str] = {}
    kept: set[str] = set()
    everything = False
    for data in told:
        locations |= data.get("locations") or {}
        named = _sids(data, "items") or list(data.get("locations") or {})
        wrong, stays = _sids(data, "wrong"), _sids(data, "kept")
        items |= dict.fromkeys(named)
        items = {sid: None for sid in items if sid not in wrong}
        kept |= set(stays)
        silent = not (named or wrong or stays or data.get("last"))
        everything = everything or (silent and data.get("items") is None)
    last = any(data.get("last") for data in told)
    return Report(bool(told), tuple(items), everything, locations, frozenset(kept), last)


def _sids(data: dict[str, Any], name: str) -> list[str]:
    value = data.get(name) or []
    return [str(sid) for sid in (value if isinstance(value, list) else [value])]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a step finds: the order, what the warehouse told, and every item told of or on the order, as it is now."""

    remote: RemoteOrder
    report: Report
    items: dict[str, Item]

    @property
    def on_order(self) -> list[Item]:
        return [item for item in self.items.values() if item.order == self.remote.id]

    @property
    def picked(self) -> list[Item]:
        """The boxes that are on the order, or told to be picked for it; not what the customer has at home."""
        told = set(self.report.items)
        boxes = (item for item in self.items.values() if item.state != schema.WITH_CUSTOMER)
        return [item for item in boxes if item.order == self.remote.id or item.sid in told]


@dataclass(frozen=True, slots=True)
class Handling:
    """One kind of work on items. `amiss`: why an item cannot be meant, or None. `done`: whether it has been worked on.
    `left`: which items are still to be told of; `all`: which ones a signal without items means."""

    type: str
    amiss: Callable[[Scene, Item], str | None]
    done: Callable[[Scene, Item], bool]
    left: Callable[[Scene], list[str]]
    all: Callable[[Scene], list[Item]]

    @property
    def signal(self) -> str:
        return schema.SIGNALS[self.type]

    def wanted(self, scene: Scene) -> list[str]:
        """The sids of the items that are to be worked on, done or not."""
        if not scene.report.everything:
            return list(scene.report.items)
        return list(dict.fromkeys([*scene.report.items, *(item.sid for item in self.all(scene))]))


def _on_another_order(scene: Scene, item: Item) -> str | None:
    return f"is on another order, {item.order}" if item.order not in (None, scene.remote.id) else None


def _not_on_this_order(scene: Scene, item: Item) -> str | None:
    return "is not on this order" if item.order is None else _on_another_order(scene, item)


def _not_to_collect(scene: Scene, item: Item) -> str | None:
    if item.owner is not None and item.owner != scene.remote.owner:
        return "belongs to another customer"
    return _on_another_order(scene, item)


def _not_to_store(scene: Scene, item: Item) -> str | None:
    place = scene.report.locations.get(item.sid)
    if item.state == schema.STORED and item.location is not None and place not in (None, item.location):
        return f"is stored at {item.location} in Storeganise, and the warehouse says {place}"
    if item.state != schema.STORED and not place:
        return 'has no location: signal it with {"items": [...], "locations": {"<item>": "<shelf>"}}'
    return _not_on_this_order(scene, item)


def _to_pick(scene: Scene) -> list[str]:
    short = sum(scene.remote.boxes.values()) - len(scene.picked)
    return [f"{short} of the boxes asked for"] if short > 0 else []


def _stored(scene: Scene, item: Item) -> bool:
    place = scene.report.locations.get(item.sid)
    return item.state == schema.STORED and (item.location is None or place in (None, item.location))


def _not_collected(scene: Scene) -> list[str]:
    """Those that the customer may still give back: unless the warehouse says that this was all."""
    if scene.report.last:
        return []
    return [item.sid for item in _in(scene, schema.WITH_CUSTOMER) if item.sid not in scene.report.kept]


def _in(scene: Scene, state: str) -> list[Item]:
    return [item for item in scene.on_order if item.state == state]


HANDLINGS = {
    schema.PICK: Handling(
        schema.PICK,
        amiss=_on_another_order,
        done=lambda scene, item: item.order == scene.remote.id,
        left=_to_pick,
        all=lambda scene: scene.on_order,
    ),
    schema.DELIVER: Handling(
        schema.DELIVER,
        amiss=_not_on_this_order,
        done=lambda scene, item: item.state == schema.WITH_CUSTOMER,
        left=lambda scene: [item.sid for item in scene.on_order if item.state != schema.WITH_CUSTOMER],
        all=lambda scene: scene.on_order,
    ),
    schema.COLLECT: Handling(
        schema.COLLECT,
        amiss=_not_to_collect,
        done=lambda scene, item: item.state == schema.TO_WAREHOUSE,
        left=_not_collected,
        all=lambda scene: [item for item in scene.on_order if item.sid not in scene.report.kept],
    ),
    schema.STORE: Handling(
        schema.STORE,
        amiss=_not_to_store,
        done=_stored,
        left=lambda scene: [item.sid for item in _in(scene, schema.TO_WAREHOUSE)],
        all=lambda scene: _in(scene, schema.TO_WAREHOUSE),
    ),
}


def look(job: Job, account: Account, kind: Handling, remote: RemoteOrder) -> Scene:
    """The order's items: those it lists, and those that were told of. Types are not in the order's list, and matter to
    boxes that are picked; should it list nothing at all, every item ever told of is looked for."""
    report = report_of(job, kind.signal)
    listed = {item.sid: item for item in remote.items or ()}
    told = dict.fromkeys(report.items)
    if remote.items is None:
        told |= {sid: None for name in HANDLINGS for sid in report_of(job, schema.SIGNALS[name]).items}
    asked = [sid for sid in dict.fromkeys([*listed, *told]) if sid not in listed or kind.type == schema.PICK]
    return Scene(remote, report, listed | schema.parse_items(account.client.items(asked)))


def check(scene: Scene, kind: Handling) -> None:
    """A wrong item stops the step before anything is written (trap 15), and so does an order of which no item can be
    seen, whose step would be completed without a command (trap 1)."""
    words = [f"{sid}: {why}" for sid in kind.wanted(scene) if (why := _amiss(scene, kind, sid)) is not None]
    if kind.type == schema.PICK:
        words += schema.not_asked_for(scene.remote.boxes, scene.picked)
        if scene.report.everything and _to_pick(scene):
            words.append('the signal names no boxes: signal it with {"items": ["<box>"]}')
    elif scene.report.told and not scene.items:
        words.append('no item of the order is known: signal it with {"items": [...]}')
    if words:
        raise Refused(f"{kind.signal}, but {'; '.join(words)}")


def _amiss(scene: Scene, kind: Handling, sid: str) -> str | None:
    item = scene.items.get(sid)
    return "there is no such item" if item is None else kind.amiss(scene, item)


def undone(scene: Scene, kind: Handling) -> list[str]:
    items = {sid: scene.items.get(sid) for sid in kind.wanted(scene)}
    return [sid for sid, item in items.items() if item is None or not kind.done(scene, item)]


def by_place(kind: Handling, scene: Scene, sids: list[str]) -> dict[str | None, list[str]]:
    groups: dict[str | None, list[str]] = {}
    for sid in sids:
        place = scene.report.locations[sid] if kind.type == schema.STORE else None
        groups.setdefault(place, []).append(sid)
    return groups
