"""How long a round of chaos is, and where its chance comes from.

    pytest tests/chaos                              # short: what `make test` runs
    FEDMQ_CHAOS=long pytest tests/chaos             # long: `make chaos`, which fills the table of docs/reliability.md
    FEDMQ_CHAOS_SEED=7 pytest tests/chaos           # other moments, other bytes

Real processes are not deterministic: a seed gives the same faults, and a machine its own moments.
"""

import os
import random

LONG = os.environ.get("FEDMQ_CHAOS", "short") == "long"
SEED = int(os.environ.get("FEDMQ_CHAOS_SEED", "1"))


def times(short: int, long: int) -> int:
    """How often to do something in a round of this length."""
    return long if LONG else short


def again(where: str) -> str:
    """The command that runs one test once more, with the same seed."""
    return f"FEDMQ_CHAOS={'long' if LONG else 'short'} FEDMQ_CHAOS_SEED={SEED} pytest '{where}'"


def chance(where: str) -> random.Random:
    """A test's own source of chance: the others may come and go."""
    return random.Random(f"{SEED} {where}")
