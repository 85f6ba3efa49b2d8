"""The list of systems. A sixth is added here, and nowhere else: the rest of it are files of its own name."""

from importlib import import_module

from workers.systems.base import Wiring

NAMES = (
    "cloudsuite",
    "doshii",
    "partner",
    "storeganise",
    "tastyigniter",
)

SYSTEMS: dict[str, Wiring] = {name: import_module(f"workers.systems.{name}").WIRING for name in NAMES}
