"""`python -m fedmq.cli.attended …`: a `fedmq` command that ends, in order, when who started it is gone.

Its stdin is a pipe whose other end the starter holds and never writes to. When that end closes, because the
starter closed it or died in whatever way, this process sends itself the SIGTERM that an operator would send.
"""

import os
import signal
import threading

from .main import main


def _watch() -> None:
    while os.read(0, 1024):  # nobody writes; empty means that the other end is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="fedmq-attended", daemon=True).start()
    main()
