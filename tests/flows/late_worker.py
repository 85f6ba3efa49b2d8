"""A real worker whose clock goes wrong by `CLOCK_OFF` seconds. (A process's monotonic clock cannot be wrong.)"""

import os
import sys
from datetime import UTC, datetime, timedelta

import time_machine

from workers.cli import main

time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(os.environ["CLOCK_OFF"])), tick=True).start()
sys.argv = ["orderfleet", "worker"]
main()
