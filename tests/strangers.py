"""An import-linter contract: systems are strangers. A module named after one system imports none named after another.

The systems are read from their one list, so that a sixth is held to this without another edit."""

from collections import defaultdict
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

from workers.systems import NAMES


class Strangers(Contract):
    """`folders`: the packages that have a file, or several, for each system."""

    folders = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Broken by every direct import from one system's module to another's, in any of the folders."""
        of: dict[str, str] = {}
        for folder in self.folders:  # type: ignore[attr-defined]  # a field becomes its value
            of |= {module: name for module in graph.find_descendants(folder) if (name := system_of(module))}
        found: dict[str, list[str]] = defaultdict(list)
        for module, system in of.items():
            found[module] += [
                to for to in graph.find_modules_directly_imported_by(module) if of.get(to, system) != system
            ]
        broken = {module: sorted(to) for module, to in found.items() if to}
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each import that must not be."""
        broken: dict[str, Any] = check.metadata["broken"]
        for module, imported in sorted(broken.items()):
            output.print_error(f"{module} imports {', '.join(imported)}")


def system_of(module: str) -> str | None:
    """The system a module is named after: `webhooks.partner_orders` is partner's."""
    words = {word for part in module.split(".") for word in (part, part.partition("_")[0])}
    return next((name for name in NAMES if name in words), None)
