"""A lane is a remote as the fleet meets it: one account of a system, or the ERP. What is down closes its lane only."""

ERP = "erp"


def lane_of(system: str, account: str, step: str | None) -> str:
    """Whom `step` of an order of (system, account) talks to. A finished order (no step) has its own system's lane."""
    return ERP if step is not None and step.startswith("erp.") else f"{system}:{account}"
