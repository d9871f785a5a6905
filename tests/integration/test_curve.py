"""Keys between real processes: who gets in, who is sent away, and who joins by an invite.

The peers that misbehave are raw sockets with keys of their own; everybody else is a `fedmq` command.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from fedmq.broker import auth
from fedmq.broker.keyring import Invite, KeyRing
from fedmq.fedcore import wire
from fedmq.fedcore.keys import Pair, Token, read_token, to_bytes, to_token, write_pair

from .federation import QUICK, Federation, Tables, log_of, merged, run, wait_for

ASYNC: Tables = {"mode": {"kind": "async", "buffer": 2, "concurrency": 8}, "security": {"keys": "keys"}}
SYNC: Tables = {"mode": {"kind": "sync", "min_available": 3}, "security": {"keys": "keys"}}
SERVER = ("--server-key", "keys/broker.key")
DROPPED_S = 15.0
"""A revoked worker is dropped within about two seconds; this machine may be busy."""


class Peer:
    """A raw DEALER with keys of its own, or without."""

    def __init__(self, endpoint: str, server: str, pair: Pair | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_ALL)
        if pair is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self._context.destroy(linger=0)

    def say(self, message: wire.Message, payload: bytes | None = None) -> None:
        self.socket.send_multipart(wire.encode(message, payload))

    def hear(self, timeout_s: float = 20.0) -> wire.Message:
        """The next message that is no BEAT."""
        ends = time.monotonic() + timeout_s
        while self.socket.poll(int(max(ends - time.monotonic(), 0) * 1000)):
            message, _ = wire.decode(self.socket.recv_multipart(), wire.TO_WORKER)
            if not isinstance(message, wire.Beat):
                return message
        raise AssertionError("the broker said nothing")

    def events(self, wanted: int, timeout_s: float = 20.0) -> set[int]:
        """What its monitor saw, until `wanted` is among it."""
        seen: set[int] = set()
        ends = time.monotonic() + timeout_s
        while wanted not in seen and time.monotonic() < ends:
            if self.monitor.poll(100):
                seen.add(int.from_bytes(self.monitor.recv_multipart()[0][:2], "little"))
        return seen


HELLO = wire.Hello(protocol=1, name="raw", instance=b"i", boot=b"b", free=0)


class Keyed(Federation):
    """A federation whose broker has keys."""

    def __init__(self, folder: Path, tables: Tables) -> None:
        super().__init__(folder, tables)
        self.ring = KeyRing(folder / "keys")
        if not (folder / "keys").exists():
            write_pair(folder / "keys", "broker", auth.new_pair())
        self._peers = contextlib.ExitStack()

    def __exit__(self, *error: Any) -> None:
        self._peers.close()
        super().__exit__(*error)

    def allow(self, name: str) -> Pair:
        """Let a new key in."""
        pair = auth.new_pair()
        self.ring.allow(pair.public, name)
        return pair

    def invite(self, name: str, expires_s: float = 600.0) -> str:
        """An invite's token."""
        pair, until = auth.new_pair(), float(int(time.time() + expires_s))
        self.ring.invite(Invite(pair.public, until, name=name), time.time())
        return to_token(Token(self.ring.public, pair.secret, until, self.endpoint, name))

    def peer(self, pair: Pair | None, server: str | None = None) -> Peer:
        """A raw socket; it is closed with the federation."""
        peer = Peer(self.endpoint, server or self.ring.public, pair)
        self._peers.callback(peer.close)
        return peer

    def member(self, name: str) -> Peer:
        """A raw socket with an allowed key and a session."""
        peer = self.peer(self.allow(name))
        peer.say(HELLO)
        assert isinstance(peer.hear(), wire.Welcome)
        return peer

    def start_keyed(self, name: str, app: str = "tiny:App", **node: object) -> None:
        """Start a worker whose key is allowed beforehand."""
        write_pair(self.folder / name, "worker", self.allow(name))
        self.start_worker(name, app, *SERVER, **node)

    def states(self) -> dict[str, str]:
        """What each worker is doing, by its name."""
        return {worker["name"]: worker["state"] for worker in self.status()["workers"]}


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Keyed]:
    """A broker with keys and nobody there."""
    with Keyed(tmp_path, merged(QUICK, ASYNC)) as federation:
        federation.start_broker()
        yield federation


def test_a_whole_federation_finishes_under_keys(tmp_path: Path) -> None:
    """One worker by an invite, one whose key was made before, one allowed while it was refused; all by commands."""
    with Keyed(tmp_path, merged(QUICK, SYNC, {"stop": {"versions": 4}})) as f:
        f.start_broker()
        invited = run("keys", "invite", "--name", "w1", cwd=tmp_path)
        assert invited.returncode == 0, invited.stderr
        (tmp_path / "token").write_text(invited.stdout)
        f.start_worker("w1", "tiny:App", "--invite", "token")
        assert run("keys", "new", "worker", "--dir", "w2", cwd=tmp_path).returncode == 0
        assert run("keys", "allow", "w2", cwd=tmp_path).returncode == 0
        f.start_worker("w2", "tiny:App", *SERVER)
        late = f.start_worker("w3", "tiny:App", *SERVER)
        wait_for("w3 is refused", lambda: "not on its list" in log_of(late))
        public = run("keys", "show", "w3", cwd=tmp_path).stdout.strip()
        assert public in log_of(late)
        assert (
            run("keys", "allow", public, "--name", "w3", "--dir", f.toml.name, cwd=tmp_path).returncode == 0
        )
        f.finish()
        assert len(f.history()) == 5
        workers = {worker for (worker,) in f.query("SELECT DISTINCT worker FROM updates")}
        assert workers == f.ring.allowed().keys()
        assert set(f.ring.allowed().values()) == {"w1", "w2", "w3"}
        for secret in ("keys/broker.secret", "w1/worker.secret", "w2/worker.secret", "w3/worker.secret"):
            assert (tmp_path / secret).stat().st_mode & 0o777 == 0o600
            everything = "".join(log.read_text() for log in tmp_path.glob("*.log"))
            assert (tmp_path / secret).read_text().strip() not in everything


def test_an_unknown_key_never_gets_in(quiet: Keyed) -> None:
    """Its handshake ends; nothing of it is ever a message, and the status counts it."""
    stranger = quiet.peer(auth.new_pair())
    stranger.socket.setsockopt(zmq.IMMEDIATE, 0)
    stranger.say(HELLO)
    seen = stranger.events(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert zmq.EVENT_HANDSHAKE_FAILED_AUTH in seen
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
    status = quiet.status()
    assert status["keys_refused"] >= 1
    assert status["workers"] == []
    assert status["bytes_up"] == 0
    assert quiet.broker is not None
    assert "key refused" in log_of(quiet.broker)


@pytest.mark.parametrize("kind", ["no key", "a wrong server key"])
def test_without_the_right_keys_there_is_no_handshake(quiet: Keyed, kind: str) -> None:
    """A client in the clear, and one that takes another for the broker, even with an allowed key."""
    failed = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    if kind == "no key":
        peer = quiet.peer(None)
    else:
        peer = quiet.peer(quiet.allow("raw"), server=auth.new_pair().public)
        failed = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    peer.say(HELLO)
    seen = peer.events(failed)
    assert failed in seen
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
    assert quiet.status()["bytes_up"] == 0


def test_workers_say_in_one_line_what_is_wrong_with_their_keys(quiet: Keyed, tmp_path: Path) -> None:
    """No key, a wrong server key, a key that is not allowed: each tries again later, none loops or crashes."""
    write_pair(tmp_path, "other", auth.new_pair())
    plain = quiet.start_worker("plain")
    wrong = quiet.start_worker("wrong", "tiny:App", "--server-key", "other.key")
    unknown = quiet.start_worker("unknown", "tiny:App", *SERVER)
    wait_for("plain", lambda: "it may want a key" in log_of(plain))
    wait_for("wrong", lambda: "broke off the handshake" in log_of(wrong))
    wait_for("unknown", lambda: "not on its list" in log_of(unknown))
    assert plain.code is wrong.code is unknown.code is None
    assert quiet.status()["workers"] == []
    quiet.ring.allow((tmp_path / "unknown" / "worker.key").read_text().strip(), "unknown")
    wait_for("it comes by itself", lambda: "unknown" in quiet.states())


def test_a_worker_that_knew_a_key_never_speaks_in_the_clear(tmp_path: Path) -> None:
    """Started without --server-key later, it still wants the broker that it had; one without keys gets nothing."""
    with Keyed(tmp_path, merged(QUICK, ASYNC)) as f:
        f.start_broker()
        f.start_keyed("w1")
        wait_for("w1", lambda: "w1" in f.states())
        f.workers["w1"].kill()
        again = f.start_worker("w1")
        wait_for("w1 is back", lambda: log_of(again).count("connected  ") >= 2)
        again.kill()
        f.stop_broker(signal.SIGTERM)
        f.tables["security"] = {}
        f.start_broker()
        again = f.start_worker("w1")
        wait_for("it sees the difference", lambda: "it may have no keys" in log_of(again))
        assert f.status()["workers"] == []


def test_two_keys_with_one_name_are_two_workers(quiet: Keyed) -> None:
    """A name is for people. Evicting by it asks which; status shows both keys."""
    first, _ = quiet.member("a"), quiet.member("b")
    assert [worker["name"] for worker in quiet.status()["workers"]] == ["raw", "raw"]
    keys = {worker["key"] for worker in quiet.status()["workers"]}
    assert keys == quiet.ring.allowed().keys()
    ended = run("evict", quiet.state, "raw", cwd=quiet.folder)
    assert ended.returncode != 0
    assert all(key in ended.stderr for key in keys)
    assert all(f"key {key}" in quiet.cli("status") for key in keys)
    victim = next(key for key, name in quiet.ring.allowed().items() if name == "a")
    quiet.cli("evict", "--", victim)
    assert first.hear() == wire.Bye(reason="revoked")
    assert {w["key"]: w["state"] for w in quiet.status()["workers"]}[victim] == "evicted"


def test_a_revoked_worker_that_is_silent_is_dropped(quiet: Keyed) -> None:
    """Its session ends with BYE, its connection is cut from below, its key gets in no more; others do not notice."""
    victim, other = quiet.member("victim"), quiet.member("other")
    victim.events(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    before = time.monotonic()
    assert quiet.ring.revoke("victim")[0]
    assert victim.hear(DROPPED_S) == wire.Bye(reason="revoked")
    seen = victim.events(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    print(f"dropped, cut and refused after {time.monotonic() - before:.2f} s")
    assert {zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_AUTH} <= seen
    other.say(wire.Fetch(version=5, offset=0, length=1))
    answer = other.hear()
    assert isinstance(answer, wire.Error)
    assert answer.why == "gone"  # and not need_hello: its session is what it was
    assert zmq.EVENT_DISCONNECTED not in other.events(zmq.EVENT_DISCONNECTED, 0.5)


def test_each_message_is_checked(quiet: Keyed) -> None:
    """What a key sends after it was revoked is not heard, although its connection still stands."""
    victim = quiet.member("victim")
    quiet.ring.revoke("victim")
    ends = time.monotonic() + DROPPED_S
    heard: list[wire.Message] = []
    while wire.Bye(reason="revoked") not in heard and time.monotonic() < ends:
        victim.say(wire.Fetch(version=5, offset=0, length=1))
        heard.append(victim.hear())
        time.sleep(0.01)  # else it would be sent away as a flood
    assert heard[-1] == wire.Bye(reason="revoked")
    for _ in range(5):
        victim.say(HELLO)
    assert victim.socket.poll(1000) == 0, "a revoked key was answered"
    assert {worker["state"] for worker in quiet.status()["workers"]} == {"gone"}


@pytest.mark.parametrize("doing", ["training", "uploading"])
def test_a_revoked_workers_tasks_go_to_others(tmp_path: Path, doing: str) -> None:
    """While it trains, and while its update is on its way; the others make the versions without it."""
    n = 1000 if doing == "training" else 20_000

    def spooled(task: bytes) -> list[Path]:
        return list((tmp_path / "state" / "spool").glob(f"{task.hex()}*"))

    # What a raw peer holds a round waits for; a federation of two others goes on without it.
    tables = merged(QUICK, SYNC, {"mode": {"kind": "sync", "min_available": 2, "deadline_s": 30}})
    with Keyed(tmp_path, tables) as f:
        f.start_broker()
        victim = f.member("victim")
        victim.say(wire.Beat(tasks=(), outbox=(), free=1, seen=0))
        f.start_keyed("w1", n=n)
        task = victim.hear(60.0)
        assert isinstance(task, wire.Task)
        assert task.kind == "fit"
        if doing == "uploading":
            offer = wire.Offer(
                task=task.task,
                kind="fit",
                base=task.version,
                examples=1,
                layout=task.layout,
                encoding="f32",
                size=4 * n,
                digest=bytes(16),
            )
            victim.say(offer)
            assert isinstance(victim.hear(), wire.Grant)
            victim.say(wire.Part(task=task.task, offset=0), bytes(1024))
            wait_for("its upload", lambda: f.states()["raw"] == "uploading" and spooled(task.task))
        f.start_keyed("w2", n=n)
        wait_for("w2", lambda: "w2" in f.states())
        f.ring.revoke("victim")
        assert victim.hear(DROPPED_S) == wire.Bye(reason="revoked")
        f.wait_for_version(3)
        assert f.states()["raw"] == "gone"
        assert not spooled(task.task)
        members = {key for key, name in f.ring.allowed().items() if name in ("w1", "w2")}
        assert {worker for (worker,) in f.query("SELECT DISTINCT worker FROM updates")} == members


def test_a_revoked_daemon_exits_with_a_reason(quiet: Keyed) -> None:
    """BYE `revoked` is final: code 7, as for any worker that is refused for good."""
    quiet.start_keyed("w1")
    wait_for("w1", lambda: quiet.states().get("w1") in ("idle", "training", "uploading"))
    ended = run("keys", "revoke", "w1", cwd=quiet.folder)
    assert ended.stdout == "revoked w1\n"
    assert quiet.workers["w1"].join(DROPPED_S)
    assert quiet.workers["w1"].code == 7


def test_a_list_that_breaks_changes_nothing(quiet: Keyed) -> None:
    """A slip of the finger, a file that is gone: all stay, and the log says it. An empty list is one."""
    member = quiet.member("member")
    listed = quiet.ring.allowlist.read_text()
    quiet.ring.allowlist.write_text(listed + "not a key\n")
    broker = quiet.broker
    assert broker is not None
    wait_for("the broken line", lambda: "line 2" in log_of(broker))
    quiet.ring.allowlist.unlink()
    wait_for("the missing file", lambda: "is gone" in log_of(broker))
    member.say(wire.Fetch(version=5, offset=0, length=1))
    assert isinstance(member.hear(), wire.Error)
    quiet.ring.allowlist.write_text("")  # this is how one lets nobody in
    assert member.hear(DROPPED_S) == wire.Bye(reason="revoked")


def test_an_invite_registers_one_key_once(quiet: Keyed) -> None:
    """The first ENROLL wins; the same key may ask again, another is refused, also after a restart of the broker."""
    token = read_token(quiet.invite("ward-3"))
    pair = Pair(zmq.curve_public(token.secret.encode()).decode(), token.secret)
    first, second = auth.new_pair(), auth.new_pair()
    guest = quiet.peer(pair)
    guest.say(wire.Enroll(key=to_bytes(first.public)))
    assert guest.hear() == wire.Enrolled(key=to_bytes(first.public))
    assert quiet.ring.allowed() == {first.public: "ward-3"}
    guest.say(wire.Enroll(key=to_bytes(first.public)))
    assert guest.hear() == wire.Enrolled(key=to_bytes(first.public))
    guest.say(wire.Enroll(key=to_bytes(second.public)))
    assert _forbidden(guest.hear(), "once")
    assert quiet.broker is not None
    quiet.broker.kill()
    quiet.start_broker()
    late = quiet.peer(pair)
    late.say(wire.Enroll(key=to_bytes(second.public)))
    assert _forbidden(late.hear(), "once")
    member = quiet.peer(first)
    member.say(HELLO)
    assert isinstance(member.hear(), wire.Welcome)
    assert quiet.ring.allowed() == {first.public: "ward-3"}


def test_two_that_race_for_one_invite_are_one_worker(quiet: Keyed) -> None:
    """Both connect, both ask at the same time; one gets in, the other is told why not."""
    token = read_token(quiet.invite("ward-3"))
    pair = Pair(zmq.curve_public(token.secret.encode()).decode(), token.secret)
    peers = [quiet.peer(pair) for _ in range(6)]
    keys = [auth.new_pair().public for _ in peers]
    gate = threading.Barrier(len(peers))

    def ask(peer: Peer, key: str) -> None:
        gate.wait()
        peer.say(wire.Enroll(key=to_bytes(key)))

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(peers, keys, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [peer.hear() for peer in peers]
    won = [answer for answer in answers if isinstance(answer, wire.Enrolled)]
    assert len(won) == 1
    assert sum(_forbidden(answer, "once") for answer in answers) == len(peers) - 1
    assert list(quiet.ring.allowed()) == [keys[answers.index(won[0])]]


def test_an_invites_key_may_do_nothing_but_enroll(quiet: Keyed) -> None:
    """Whatever else it says is forbidden, and opens no session; a member's ENROLL is forbidden as well."""
    token = read_token(quiet.invite("ward-3"))
    guest = quiet.peer(Pair(zmq.curve_public(token.secret.encode()).decode(), token.secret))
    for message, payload in (
        (HELLO, None),
        (wire.Beat(), None),
        (wire.Fetch(version=0, offset=0, length=1), None),
        (wire.Part(task=b"t", offset=0), b"x"),
        (wire.Bye(), None),
    ):
        guest.say(message, payload)
        answer = guest.hear()
        assert _forbidden(answer, "nothing but ENROLL")
        assert isinstance(answer, wire.Error)
        assert answer.ref == message.code
    assert quiet.status()["workers"] == []
    guest.say(wire.Enroll(key=to_bytes(guest_key := auth.new_pair().public)))
    assert guest.hear() == wire.Enrolled(key=to_bytes(guest_key))
    member = quiet.member("member")
    member.say(wire.Enroll(key=bytes(32)))
    assert _forbidden(member.hear(), "registered already")


def test_an_expired_invite_is_refused_in_words(quiet: Keyed) -> None:
    """The worker says when it expired, and goes on trying with its own key, which the operator may still allow."""
    token = quiet.invite("late", expires_s=-100)
    child = quiet.start_worker("w1", "tiny:App", "--invite", token)
    wait_for("the refusal", lambda: "does not take this invite, which held until" in log_of(child))
    wait_for("its own key", lambda: "not on its list" in log_of(child))
    assert child.code is None
    quiet.ring.allow((quiet.folder / "w1" / "worker.key").read_text().strip(), "w1")
    wait_for("w1", lambda: "w1" in quiet.states())


def test_a_worker_whose_enrolled_was_lost_gets_through(quiet: Keyed) -> None:
    """It was registered, never heard of it, and is started again with the invite: at once, and long after."""
    token = quiet.invite("w1")
    secret = read_token(token).secret
    guest = quiet.peer(Pair(zmq.curve_public(secret.encode()).decode(), secret))
    own = auth.new_pair()
    write_pair(quiet.folder / "w1", "worker", own)
    guest.say(wire.Enroll(key=to_bytes(own.public)))
    assert isinstance(guest.hear(), wire.Enrolled)
    child = quiet.start_worker("w1", "tiny:App", "--invite", token)
    wait_for("w1", lambda: "w1" in quiet.states())
    child.kill()
    quiet.ring.revoke("nobody")
    quiet.ring._write_invites({})  # as when it has expired
    quiet.start_worker("w1", "tiny:App", "--invite", token)
    wait_for("w1 again", lambda: quiet.states().get("w1") in ("idle", "training", "uploading"))


def test_what_is_revoked_cannot_come_back_by_its_invite(quiet: Keyed) -> None:
    """The invite goes with the key that it registered."""
    token = read_token(quiet.invite("ward-3"))
    pair = Pair(zmq.curve_public(token.secret.encode()).decode(), token.secret)
    own = auth.new_pair()
    guest = quiet.peer(pair)
    guest.say(wire.Enroll(key=to_bytes(own.public)))
    assert isinstance(guest.hear(), wire.Enrolled)
    quiet.ring.revoke("ward-3")
    assert quiet.ring.invites() == {}
    again = quiet.peer(pair)
    again.say(wire.Enroll(key=to_bytes(own.public)))
    assert zmq.EVENT_HANDSHAKE_FAILED_AUTH in again.events(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert quiet.ring.allowed() == {}


def test_a_broker_refuses_keys_that_are_not_in_order(tmp_path: Path) -> None:
    """None there, a secret that others can read, halves that do not belong together, a broken list: exit code 2."""
    with Keyed(tmp_path, merged(QUICK, ASYNC)) as f:
        f.start_broker()
        f.stop_broker(signal.SIGTERM)

        def refusal() -> str:
            ended = run("broker", f.toml, cwd=tmp_path)
            assert ended.returncode == 2
            assert "security.keys" in ended.stderr
            return ended.stderr

        secret = tmp_path / "keys" / "broker.secret"
        secret.chmod(0o640)
        assert "others can read (mode 0640)" in refusal()
        assert secret.read_text().strip() not in refusal()
        secret.chmod(0o600)
        (tmp_path / "keys" / "broker.key").write_text(auth.new_pair().public + "\n")
        assert "is not the public half" in refusal()
        f.ring.allowlist.write_text("ward-3\n")
        (tmp_path / "keys" / "broker.key").write_text(
            zmq.curve_public(secret.read_bytes().strip()).decode() + "\n"
        )
        assert "line 1, begins with no key" in refusal()
        secret.unlink()
        assert "fedmq keys new broker" in refusal()


def test_beyond_loopback_it_takes_keys_or_says_insecure(tmp_path: Path) -> None:
    """The error names both ways out; the option means what the key means."""
    toml = tmp_path / "federation.toml"
    toml.write_text('[federation]\nbind = "tcp://0.0.0.0:*"\n')
    ended = run("broker", toml, cwd=tmp_path)
    assert ended.returncode == 2
    assert "security.keys" in ended.stderr
    assert "--insecure" in ended.stderr
    with Federation(tmp_path, merged(QUICK, ASYNC)) as f:
        child = f.spawn("broker", "broker", toml, "--insecure")
        wait_for("it listens", lambda: (tmp_path / "state" / "endpoint").exists() or child.code is not None)
        assert child.code is None, log_of(child)
        assert "no keys: whoever reaches this address can join" in log_of(child)
    write_pair(tmp_path / "keys", "broker", auth.new_pair())
    toml.write_text('[federation]\nbind = "tcp://0.0.0.0:*"\nstate = "other"\n[security]\nkeys = "keys"\n')
    with Federation(tmp_path, merged(QUICK, ASYNC)) as f:
        child = f.spawn("broker2", "broker", toml)
        wait_for("it listens", lambda: (tmp_path / "other" / "endpoint").exists() or child.code is not None)
        assert child.code is None, log_of(child)


def test_the_bytes_on_the_wire_cannot_be_read(tmp_path: Path) -> None:
    """A model of a known pattern goes round; whoever listens on the way sees none of it. In the clear he does."""
    pattern = np.full(5000, 1.2345, np.float32).tobytes()[:64]
    for keyed in (False, True):
        folder = tmp_path / ("keyed" if keyed else "plain")
        folder.mkdir()
        with Keyed(folder, merged(QUICK, ASYNC if keyed else {"mode": ASYNC["mode"]})) as f:
            f.start_broker()
            tapped = Tap(f.endpoint)
            f._peers.callback(tapped.close)
            pair = f.allow("raw")
            peer = Peer(tapped.endpoint, f.ring.public, pair if keyed else None)
            f._peers.callback(peer.close)
            peer.say(HELLO)
            assert isinstance(peer.hear(), wire.Welcome)
            peer.say(wire.Part(task=b"t", offset=0), pattern)
            peer.say(wire.Fetch(version=5, offset=0, length=1))
            while not (isinstance(answer := peer.hear(), wire.Error) and answer.ref == wire.Fetch.code):
                pass
            assert (pattern in tapped.seen) != keyed
            assert len(tapped.seen) > len(pattern)


class Tap:
    """Passes one TCP connection on, and keeps what went through."""

    def __init__(self, endpoint: str) -> None:
        import socket

        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)

    def _run(self) -> None:
        import select
        import socket

        with contextlib.suppress(OSError):
            self._listener.settimeout(60)
            near, _ = self._listener.accept()
            with near, socket.create_connection(self._target) as far:
                ways = {near: far, far: near}
                while ready := select.select(list(ways), [], [], 60)[0]:
                    for source in ready:
                        data = source.recv(65536)
                        if not data:
                            return
                        self.seen += data
                        ways[source].sendall(data)


def _forbidden(message: wire.Message, reason: str) -> bool:
    return isinstance(message, wire.Error) and message.why == "forbidden" and reason in message.reason
