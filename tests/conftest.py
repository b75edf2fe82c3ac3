"""One thread per test process: the suite runs in several processes, and small things gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
