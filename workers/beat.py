"""The whole timetable: which tick is sent how often, and the tasks that carry them.

Two beats do no harm: a tick is done once, by the ledger (`tasks.ticks`). A beat that was away leaves no gap: polls and
feeds go on from their cursors."""

from datetime import UTC, datetime
from typing import Any

from celery import Celery

from tasks.base import Fleet
from workers.bootstrap import build_fleet
from workers.celery import FILL_TASK, FLEET_QUEUE, build_app, news_task
from workers.settings import Settings

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def timetable(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """Celery beat's schedule: a poll per account that has one, and the ERP's feed. Seconds."""
    plan = {"erp.events": _entry("erp.events", fleet.erp_poll_seconds)}
    for (system, name), account in fleet.accounts.items():
        if fleet.systems[system].poll is not None:
            plan[f"{system}.poll:{name}"] = _entry(f"{system}.poll", account.poll_seconds, account=name)
    return plan


def _entry(task: str, seconds: float, **kwargs: str) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, "kwargs": kwargs, "options": {"queue": FLEET_QUEUE}}


def register_ticks(app: Celery, fleet: Fleet) -> None:
    """The tasks that the timetable and the bell send. They are tried at the next tick, never by Celery."""

    @app.task(name="erp.events", ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
    def erp_events(**unknown: Any) -> str:
        return str(app.runtime.ticks.feed())

    @app.task(name=FILL_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def fill(**unknown: Any) -> str:
        return f"{app.runtime.dispatcher.fill()} sent"

    for system in fleet.systems.values():
        if system.poll is not None:
            _register_poll(app, system.name)
        if system.review is not None:
            _register_news(app, system.name)


def _register_poll(app: Celery, system: str) -> None:
    @app.task(name=f"{system}.poll", ignore_result=True)  # type: ignore[untyped-decorator]
    def poll(account: str = "default", **unknown: Any) -> str:
        return str(app.runtime.ticks.poll(system, account))


def _register_news(app: Celery, system: str) -> None:
    @app.task(name=news_task(system), ignore_result=True)  # type: ignore[untyped-decorator]
    def news(account: str = "default", **unknown: Any) -> str:
        return str(app.runtime.ticks.news(system, account))


def run_beat(settings: Settings, *, log_level: str = "INFO") -> None:
    """Send every tick when it is due, until told to stop (SIGTERM). Raises `WrongSettings`.

    The timetable is kept in memory: every tick is due at the start, which does no harm, and two beats share no file."""
    fleet = build_fleet(settings)
    app = build_app(settings.broker_url or "", settings.systems)
    app.conf.beat_schedule = {name: entry | {"last_run_at": _LONG_AGO} for name, entry in timetable(fleet).items()}
    app.Beat(scheduler="celery.beat:Scheduler", loglevel=log_level, quiet=True).run()
