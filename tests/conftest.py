"""What holds for all tests."""

import os

from hypothesis import settings

# How long an example takes says more about the machine than about the code; pytest-timeout is the limit.
settings.register_profile("fedmq", deadline=None, print_blob=True)
# In CI the same examples every time: a change is judged by what it changed.
settings.register_profile("fedmq-ci", settings.get_profile("fedmq"), derandomize=True, database=None)
settings.load_profile("fedmq-ci" if os.environ.get("CI") else "fedmq")
