"""How a step can fail, named by what happens next.

StepError
  TryLater        asking again may work: the attempt is counted and repeated later
    Unclear       a write whose answer is lost: as TryLater, and the next try reads before it writes
  Unavailable     the remote as a whole: its orders wait, no attempt is burnt
    Misconfigured credentials or rights refused, a setting is wrong: as Unavailable, until a person mends it
  Refused         a person must act: parked with the reason
  InDoubt         an effect that may have happened and cannot be read back: stops and asks
Anything else is our bug: reported, retried a few times, parked.
"""

READ_FAILED = 200
"""The status of a `TryLater` that is no fault of the remote: it answered, but what we wrote is not there yet."""


class StepError(Exception):
    """The root. `reason` is for people; `status` is the HTTP status, if there was an answer."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class TryLater(StepError):
    """Asking again may work. `after`: seconds the remote asked us to wait (`Retry-After`), which wins over ours."""

    def __init__(self, reason: str, *, after: float | None = None, status: int | None = None) -> None:
        super().__init__(reason, status=status)
        self.after = after


class Unclear(TryLater):
    """A write went out and no answer, or an unreadable one, came back: it may have taken effect."""


class Unavailable(StepError):
    """The remote answers nobody just now. `after`: seconds it asked us to wait, if it said so."""

    def __init__(self, reason: str, *, after: float | None = None, status: int | None = None) -> None:
        super().__init__(reason, status=status)
        self.after = after


class Misconfigured(Unavailable):
    """Credentials, rights or a setting are wrong: the connection stops, the orders are kept."""


class Refused(StepError):
    """A person must act. `recheck`: seconds after which the step before runs again by itself, if it may."""

    def __init__(self, reason: str, *, status: int | None = None, recheck: float | None = None) -> None:
        super().__init__(reason, status=status)
        self.recheck = recheck


class InDoubt(StepError):
    """An effect may have happened and cannot be read back."""


class Fenced(Exception):
    """This worker's claim is over: another may hold the order. Nothing may be written, neither here nor there."""
