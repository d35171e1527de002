"""What all tests share: the helpers in this folder can be imported, and arithmetic keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
