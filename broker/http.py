"""The broker's HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for service managers.

==========  =============================================================================================
path        answer
==========  =============================================================================================
/metrics    every number of `metrics.METRICS`, in Prometheus's text format
/healthz    200 while the I/O loop answers within seconds; 503 when it does not: restart the process
/readyz     200 while workers are served and what they bring can be kept; 503, and why, otherwise
==========  =============================================================================================

Rules that hold here:

- It is a thread of its own, which touches nothing of the mind's: it puts a question into the inbox, and the I/O
  thread answers it between two events. Questions that come within a second share one answer, so that nobody can
  keep the broker busy with them.
- It reads and never changes anything. There are no names of workers in it.
- This module is imported where `network.http` is set, and brings its libraries: asyncio serves these pages alone.
"""

import asyncio
import contextlib
import errno
import socket as sockets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import prometheus_client
import uvicorn
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedmq.fedcore.errors import ConfigError

from .measures import Measured
from .metrics import BY_NAME, Numbers, complete
from .tally import Distribution

ANSWER_S = 5.0
"""So long the I/O loop may take to answer."""
FRESH_S = 1.0
"""So old an answer may be that is given again."""
STUCK_S = 10.0
"""A commit that takes longer than this is a disk that does not write."""
CONNECTIONS_MAX = 64
"""Beyond it, the connection that has been open longest goes: descriptors are for workers."""
LIFE_S = 30.0
"""So long a connection may be open, whatever it does."""
CLOSE_S = 5.0
PORT_MAX = 65535

Ask = Callable[[Callable[[], None]], None]
"""Have a function called in the I/O thread."""


class Loop:
    """Asks the I/O thread how things are; used by the server's thread alone.

    Parameters
    ----------
    ask : callable
        Has a function called in the I/O thread.
    measure : callable
        That function: reads the mind and what the I/O thread owns.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, ask: Ask, measure: Callable[[], Measured], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._measure = measure
        self._clock = clock
        self._asked: Future[tuple[Measured, float]] | None = None
        self._asked_at = 0.0
        self._ended = False

    async def answer(self, timeout_s: float = ANSWER_S) -> tuple[Measured, float]:
        """A moment of the last second, and how long the loop took to tell it.

        Raises
        ------
        TimeoutError
            When it does not answer.
        """
        if self._ended:
            raise TimeoutError("the broker has ended")
        asked = self._asked
        if asked is None or (asked.done() and self._clock() - self._asked_at > FRESH_S):
            asked = self._asked = Future()
            self._asked_at = self._clock()
            self._ask(lambda: self._tell(asked))
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(asked)), timeout_s)

    def close(self) -> None:
        """The I/O thread answers no more: whoever waits for it need not. For that thread."""
        self._ended = True
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(TimeoutError("the broker has ended"))

    def _tell(self, asked: "Future[tuple[Measured, float]]") -> None:
        """In the I/O thread: a question that fails is its asker's trouble, never the loop's."""
        lag = self._clock() - self._asked_at
        try:
            asked.set_result((self._measure(), lag))
        except Exception as error:
            asked.set_exception(error)


class Pages:
    """What is answered.

    Parameters
    ----------
    loop : Loop
    vitals : callable
        The process's numbers.
    unwritable : callable
        Why nothing can be written; None while it can.
    private : bool
        Whether the federation has privacy: see `metrics`.
    sampled : bool
        Whether a secret coin decides who is asked: likewise.
    """

    def __init__(
        self,
        loop: Loop,
        vitals: Callable[[], Numbers],
        unwritable: Callable[[], str | None],
        *,
        private: bool,
        sampled: bool = False,
    ) -> None:
        self._loop = loop
        self._vitals = vitals
        self._unwritable = unwritable
        self._private = private
        self._sampled = sampled

    def close(self) -> None:
        """Let nobody wait for a broker that ends."""
        self._loop.close()

    def app(self) -> Starlette:
        """The application; what is no page is 404, and what is no GET or HEAD is 405."""
        pages = {"/metrics": self.metrics, "/healthz": self.health, "/readyz": self.readiness}
        app = Starlette(routes=[Route(path, page, methods=["GET"]) for path, page in pages.items()])
        app.router.redirect_slashes = False
        return app

    async def metrics(self, request: Request) -> Response:
        """Everything, for Prometheus."""
        try:
            measured, lag = await self._loop.answer()
        except TimeoutError:
            return Response("the broker's I/O loop does not answer\n", 503, media_type="text/plain")
        numbers = measured.numbers | self._vitals() | {"fedmq_loop_answer_seconds": lag}
        page = exposition(complete(numbers, private=self._private, sampled=self._sampled))
        return Response(page, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def health(self, request: Request) -> Response:
        """Whether the process does its work at all."""
        try:
            _, lag = await self._loop.answer()
        except TimeoutError:
            return JSONResponse({"status": "stuck", "waited_s": ANSWER_S}, 503)
        return JSONResponse({"status": "alive", "answered_s": round(lag, 6)})

    async def readiness(self, request: Request) -> Response:
        """Whether workers are served, and what they bring can be kept."""
        try:
            measured, _ = await self._loop.answer()
        except TimeoutError:
            return JSONResponse({"ready": False, "reason": "the I/O loop does not answer"}, 503)
        reason = self._not_ready(measured)
        answer: dict[str, Any] = {
            "ready": reason is None,
            "reason": reason,
            "state": measured.state,
            "why": measured.reason,
            "version": measured.version,
            "waits_for": "a worker's initial model" if measured.waits_for_model else None,
        }
        return JSONResponse(answer, 200 if reason is None else 503)

    def _not_ready(self, measured: Measured) -> str | None:
        if measured.state in ("draining", "finished"):
            return f"the federation is {measured.state}"
        running = measured.numbers.get("fedmq_commit_running_seconds", 0.0)
        if isinstance(running, float) and running > STUCK_S:
            return f"a commit has been waiting for the disk for {running:.0f} s"
        return self._unwritable()


class HttpServer:
    """The port, and the thread that serves it.

    Parameters
    ----------
    address : str
        ``host:port``; with the port ``*`` the system chooses one.

    Attributes
    ----------
    url : str
        Where it listens.

    Raises
    ------
    ConfigError
        When the address is in use, or is none of this machine's.
    """

    def __init__(self, address: str) -> None:
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        self.url: str = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._pages: Pages | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, pages: Pages) -> None:
        """Begin to answer."""
        self._pages = pages
        self._server = uvicorn.Server(
            uvicorn.Config(
                pages.app(),
                loop="asyncio",
                http=_Impatient,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._serve, args=(self._server,), name="fedmq-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop, and give the port back."""
        if self._pages is not None:
            self._pages.close()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(CLOSE_S)
        self._socket.close()

    def _serve(self, server: uvicorn.Server) -> None:
        server.run(sockets=[self._socket])


class _Impatient(H11Protocol):
    """A connection that ends after a while: one that says nothing, or slowly, must not hold a descriptor for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._end = self.loop.call_later(LIFE_S, transport.close)
        if len(self.connections) > CONNECTIONS_MAX:
            oldest = min((c for c in self.connections if isinstance(c, _Impatient)), key=lambda c: c.since)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)


def exposition(numbers: Numbers) -> bytes:
    """Numbers in Prometheus's text format, from a registry of their own."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collected(numbers))
    return prometheus_client.generate_latest(registry)


class _Collected(Collector):
    """Numbers that were taken together, as what the library writes."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        for name, value in self._numbers.items():
            about = BY_NAME[name]
            labels = [*about.labels]
            if isinstance(value, Distribution):
                buckets, below = [], 0
                for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
                    below += count
                    buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(below)))
                yield HistogramMetricFamily(name, about.help, buckets=buckets, sum_value=value.total)
                continue
            family: CounterMetricFamily | GaugeMetricFamily = (
                CounterMetricFamily(name, about.help, labels=labels)
                if about.kind == "counter"
                else GaugeMetricFamily(name, about.help, labels=labels)
            )
            for label_values, number in (value if isinstance(value, Mapping) else {(): value}).items():
                family.add_metric(list(label_values), float(number))
            yield family


def _listen(address: str) -> sockets.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if port != "*" and int(port) > PORT_MAX:  # the resolver would take it modulo 65536
            raise OverflowError(f"a port is at most {PORT_MAX}")
        family, _, _, _, target = sockets.getaddrinfo(
            host, 0 if port == "*" else int(port), type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(sockets.socket(family, sockets.SOCK_STREAM))
            made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            if family == sockets.AF_INET6:
                made.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 1)
            made.bind(target)
            made.listen(CONNECTIONS_MAX)
            stack.pop_all()
            return made
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise ConfigError(
            f'network.http is "{address}", '
            + (
                "which is in use: stop what listens there, or choose another port"
                if taken
                else f"which this machine cannot listen on: {getattr(error, 'strerror', None) or error}"
            )
        ) from None
