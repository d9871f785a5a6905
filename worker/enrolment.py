"""The mind of a worker that was invited: gets its own key registered, and leaves all else to the session. Pure.

It stands between the body and the session, and uses the session's sockets: which of the two keys the next one
speaks with is all that it decides. So the session's backoff and its patience serve the invite as well.

Rules that hold here:

- A key that no broker can know yet begins with the invite, any other with itself: a worker that was registered
  needs its invite no more, and may be started with it for ever.
- What one key is refused, the other one tries next. So a worker whose ENROLLED was lost gets through, however
  long ago that was, and so does one that its operator allowed by hand.
- Over the invite's connection nothing goes but ENROLL, once each time that it is made.
"""

from typing import Any

from fedmq.fedcore import wire

from .events import Action, CloseSocket, Event, Lost, Note, Opened, OpenSocket, Received, Refused, Send
from .session import Session

_OF_A_SOCKET = (Lost, Opened, Received, Refused)


class Enrolment:
    """A session that begins with an invite.

    Parameters
    ----------
    session : Session
        The mind behind it.
    key : bytes
        This worker's own public key.
    is_new : bool
        Whether the key was made just now.
    """

    def __init__(self, session: Session, key: bytes, *, is_new: bool) -> None:
        self._session = session
        self._key = key
        self._invited = is_new
        """Whether the socket that is open, or the next one, speaks with the invite's key."""

    def handle(self, *events: Event, now: float) -> list[Action]:
        """Take events and say what is to be done, as `Session.handle` does."""
        actions: list[Action] = []
        is_closed = False
        for event in events:
            if not (is_closed and isinstance(event, _OF_A_SOCKET)):  # another one is open by now
                made = self._take(event, now)
                is_closed |= any(isinstance(action, CloseSocket) for action in made)
                actions += made
        return actions

    def status(self) -> dict[str, Any]:
        """As `Session.status`."""
        return self._session.status()

    def _take(self, event: Event, now: float) -> list[Action]:
        if self._invited:
            match event:
                case Opened():
                    return [Send(wire.Enroll(key=self._key))]
                case Received(wire.Enrolled()):
                    self._invited = False
                    return [CloseSocket(), OpenSocket(), Note("info", "enrolled")]
                case Received(wire.Error() as error) if error.ref == wire.Enroll.code:
                    event = Refused(f"not enrolled: {error.reason or error.why}")
                case Received():
                    return []
        if isinstance(event, Refused):
            self._invited = not self._invited
        actions = self._session.handle(event, now=now)
        return [OpenSocket(invited=self._invited) if isinstance(a, OpenSocket) else a for a in actions]
