"""The one tree of exceptions that fedmq raises on purpose.

Each message says what was expected, what came instead, and what to do about it.
The command line turns any `FedmqError` into one line and the class's `exit_code`;
anything else is a defect and shows a traceback.

    FedmqError
    ├── ConfigError          a federation.toml, an option or an argument is wrong
    ├── ClientAppError       the user's code does not import, or breaks its contract
    │   └── TaskCancelled    raised inside a client app whose task is no longer wanted
    ├── ModelError           a model file cannot be read or written
    │   └── LayoutError      two models do not have the same tensors
    ├── ProtocolError        bytes from a peer break the wire protocol
    ├── StateError           a state folder is locked, damaged, of another time or full
    ├── ConnectError         the other side cannot be reached, or refuses us
    ├── PrivacyError         a request would break the privacy that was promised
    │   └── BudgetExhausted  there is no privacy budget left to spend
    └── ProcessError         a process that fedmq had started ended before its time
"""


class FedmqError(Exception):
    """Base of everything that fedmq raises on purpose."""

    exit_code = 1


class ConfigError(FedmqError):
    """A configuration file, command-line option or argument is wrong."""

    exit_code = 2


class ClientAppError(FedmqError):
    """The user's client app does not import, or its result breaks the contract."""

    exit_code = 3


class TaskCancelled(ClientAppError):
    """Raised by `TaskContext.check_cancelled` inside an app whose task is no longer wanted."""


class ModelError(FedmqError):
    """A model file cannot be read or written."""

    exit_code = 4


class LayoutError(ModelError):
    """Two models do not have the same names, shapes and types of tensors."""


class ProtocolError(FedmqError):
    """Bytes from a peer break the wire protocol.

    Attributes
    ----------
    code : str
        One of the closed list in `fedmq.fedcore.wire.ERROR_CODES`.
    task : bytes or None
        The task that the message is about, when that could be read.
    """

    exit_code = 5

    def __init__(self, message: str, code: str = "malformed", *, task: bytes | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.task = task


class StateError(FedmqError):
    """A state folder is in use, damaged, from another federation or schema, or full."""

    exit_code = 6


class ConnectError(FedmqError):
    """The other side cannot be reached, or refuses this worker for good."""

    exit_code = 7


class PrivacyError(FedmqError):
    """A request would break the privacy that was promised."""

    exit_code = 8


class BudgetExhausted(PrivacyError):
    """There is no privacy budget left for what was asked."""


class ProcessError(FedmqError):
    """A process that fedmq had started, a worker of the demo for example, ended before its time."""

    exit_code = 9
