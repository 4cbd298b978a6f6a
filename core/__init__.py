"""The headless core: model, collectors, watcher, diagnosis, plans and changes."""

import os

# Numpy's linear algebra isn't used, but would start one spinning thread per CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
