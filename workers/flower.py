"""Flower, in this process, for our broker: every step task with its retries, in a browser.

Flower's own settings are read from `FLOWER_*` by Flower itself (`FLOWER_BASIC_AUTH=name:password` is the one that
matters); the address is ours."""

import logging
import signal
from typing import Any

import structlog
from flower.app import Flower
from flower.command import apply_env_options, extract_settings
from flower.options import options
from flower.urls import settings as flower_settings

from workers.celery import build_app
from workers.settings import Settings

MOST_TASKS = 10_000
"""Tasks kept in memory, a kilobyte or two each; Flower's own default would be 100,000."""
FORGET_WORKERS_SECONDS = 300
"""A worker that was started again has a new name: the old ones need not stay on the list."""

log = structlog.get_logger(__name__)


def run_flower(settings: Settings) -> None:
    """Serve until told to stop. Events only: nothing is kept on disk."""
    _set_options(settings)
    logging.getLogger("tornado.access").setLevel("WARNING")
    if not settings.flower.loopback and not (options.basic_auth or options.auth):
        log.warning(
            "Flower listens on a public address and asks nobody for a password: set FLOWER_BASIC_AUTH=name:password, "
            "or see to it that only a proxy reaches it",
            action="flower_open",
        )
    signal.signal(signal.SIGTERM, _stop)
    flower = Flower(capp=build_app(settings.broker_url or "", settings.systems), options=options, **flower_settings)
    flower.start_http_server()
    log.info("Flower listens", action="flower_started", address=str(settings.flower))
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        flower.stop()


def _set_options(settings: Settings) -> None:
    options.max_tasks = MOST_TASKS
    options.purge_offline_workers = FORGET_WORKERS_SECONDS
    apply_env_options()
    options.address = settings.flower.host
    options.port = settings.flower.port
    extract_settings()


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(0)
