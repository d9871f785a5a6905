"""How much a peer may say that moves nothing. Pure.

A worker that does its work says few things: it beats, offers, fails, and comes back after a lost connection. What
it sends of an update or fetches of a model is bounded by credit. So every message costs a little patience, work that
is accepted gives it back, and time does. A peer that has used up its own is flooding: it loses its session and its
connection, and for a while gets no other. The budget is the worker's, not the connection's: a new one brings no new
patience.
"""

PATIENCE = 2000.0
"""Messages at once: a worker with a full outbox may come back several times in a row."""
PATIENCE_PER_S = 50.0
WORK = 8.0
"""What an accepted update gives back: its OFFER, and the BEATs around it."""
REST_S = 10.0
"""A flooder is refused for so long; doubles while it goes on, up to the next."""
REST_MAX_S = 600.0


class Patience:
    """A token bucket, and what became of those who emptied it.

    Parameters
    ----------
    now : float
        Monotonic seconds.
    """

    __slots__ = ("_at", "_left", "_rest_s", "_rest_until")

    def __init__(self, now: float) -> None:
        self._left = PATIENCE
        self._at = now
        self._rest_s = 0.0
        self._rest_until = now

    def spend(self, cost: float, now: float) -> bool:
        """Take what a message costs; False when there is no patience left for it, and the peer is to rest."""
        self._left = min(self._left + (now - self._at) * PATIENCE_PER_S, PATIENCE) - cost
        self._at = now
        if self._left >= 0.0:
            return True
        # One that was refused long ago begins at the beginning.
        again = now - self._rest_until < REST_MAX_S and self._rest_s > 0.0
        self._rest_s = min(self._rest_s * 2, REST_MAX_S) if again else REST_S
        self._rest_until = now + self._rest_s
        self._left = PATIENCE / 2
        return False

    def earn(self) -> None:
        """Its work was accepted."""
        self._left = min(self._left + WORK, PATIENCE)

    def rest_s(self, now: float) -> float:
        """How long it has to stay away; 0 when it may come."""
        return max(self._rest_until - now, 0.0)
