"""The states of an order, and which of them mean what."""

from enum import StrEnum


class State(StrEnum):
    """Where an order stands. One order is in exactly one state."""

    READY = "ready"  # its current step may go as soon as `wake_at` has come and there is room in the window
    QUEUED = "queued"  # a message for it is in the broker
    RUNNING = "running"  # a worker holds it
    RETRYING = "retrying"  # its current step failed and goes again at `wake_at`
    WAITING = "waiting"  # its current step waits for a signal
    PARKED = "parked"  # a person must act
    IN_DOUBT = "in_doubt"  # an effect may have happened and cannot be read back: a person must say
    DONE = "done"
    CANCELLED = "cancelled"
    IGNORED = "ignored"  # nothing for us to do with it


IN_FLIGHT = (State.QUEUED, State.RUNNING)
FINISHED = (State.DONE, State.CANCELLED, State.IGNORED)
NEEDS_A_PERSON = (State.PARKED, State.IN_DOUBT)
