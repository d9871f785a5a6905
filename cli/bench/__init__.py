"""`fedmq bench`: measure fedmq on this machine, with real processes and a real disk."""
