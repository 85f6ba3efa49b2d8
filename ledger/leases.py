"""How long something may stay as it is before it is taken for lost, in seconds."""

STEP_LIMIT = 600.0  # seconds after which a claim is taken back even from a worker that looks alive
RESEND_AFTER = 5.0  # seconds after which a queued order's message is looked for
WORKER_LEASE = 6.0  # seconds without a sign of life after which a worker's orders are taken over
