"""`python -m bench`: see bench/README.md."""

import sys

from bench.measure import main

sys.exit(main())
