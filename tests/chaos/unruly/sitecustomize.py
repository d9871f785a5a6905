"""What every Python that finds this on its path does before anything else, where its environment asks for it.

    FEDMQ_CHAOS_CLOCK=7        the wall clock jumps by hours, forwards and back, several times a second (7 is the seed)
    FEDMQ_CHAOS_FILES=128      there are so many descriptors and no more, whatever the process asks for

Python imports a module of this name by itself, from the folder that a test puts on its child's path.
"""

import os
import random
import resource
import time
from collections.abc import Callable

JUMP_S = 12 * 3600.0
EVERY_S = 0.2


def jumping(seed: str, clock: Callable[[], float], steady: Callable[[], float]) -> Callable[[], float]:
    """A wall clock that is now some hours early and now some hours late."""

    def now() -> float:
        turn = int(steady() / EVERY_S)
        return clock() + random.Random(f"{seed} {turn}").uniform(-JUMP_S, JUMP_S)

    return now


if "FEDMQ_CHAOS_CLOCK" in os.environ:
    time.time = jumping(os.environ["FEDMQ_CHAOS_CLOCK"], time.time, time.monotonic)
    time.time_ns = lambda: int(time.time() * 1e9)
if "FEDMQ_CHAOS_FILES" in os.environ:
    _most = int(os.environ["FEDMQ_CHAOS_FILES"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))
