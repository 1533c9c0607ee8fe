"""How is a process set up that does nothing but run a worker? For ``choreo run`` and the benchmark, never inside a user's own."""

from __future__ import annotations

import gc
import sys

SWITCH_S = 0.001
"""The interpreter hands over between threads this often. The default, 5 ms, is a hop's whole time."""


def tune_process() -> None:
    """Makes the garbage collector look rarely (events don't form rings) and not at what was there at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(SWITCH_S)
