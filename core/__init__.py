"""The headless part: the model, pure code over it, and the collectors and watcher that fill it."""

import os

# Numpy's linear algebra, which nothing here uses, would start and spin a thread for each CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
