"""Messages between rank 0 and the others, besides and independent of those of the training itself.

JSON lines over TCP. Rank 0 listens; the others say a token first, which came to them through the process group.
Nothing here blocks for long: a peer whose machine is gone must not stop the one who watches it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from slm.engine.pulse import Sign
from slm.engine.verdict import Verdict, find_hung

BEAT_S = 2.0
"""Seconds between two signs of life."""
CONNECT_S = 20.0
LONGEST_LINE = 1 << 16

Message = dict[str, Any]


class Wire:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self._rest = connection, b""

    def send(self, message: Message) -> None:
        """Send, or drop the message: a peer that takes none any more is found by its silence."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[Message], bool]:
        """What has arrived, and whether the connection still stands."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return [], True
        except OSError:
            return [], False
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines], bool(data) and len(self._rest) < LONGEST_LINE
        except (TypeError, ValueError):
            return [], False


class Silence:
    """Counts seconds without a sign, by this process's own clock: while it is stopped itself, none pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, elapsed: float) -> None:
        """So much time has passed; more than two beats at once were this process's own sleep."""
        self.seconds += min(elapsed, 2 * BEAT_S)


@dataclass
class _Peer:
    sign: Sign
    silence: Silence
    wire: Wire | None = None
    left: bool = False


def brought_up(sign: Sign, own: Sign) -> Sign:
    """What was last heard of a rank, up to two seconds ago, with the observer's phase: ranks go in step, a message
    apart."""
    return replace(sign, phase=own.phase, step=own.step) if own.count > sign.count else sign


def patience(sign: Sign, own: Sign) -> float:
    """Factor on how long a rank may be silent: one that took steps with the observer is past its start, whatever the
    last was that it said of itself."""
    return 1.0 if own.longest_step_s else sign.patience


class Line:
    """What both ends share: a turn handles what has arrived and, when it is time, tells a sign.

    Args:
        own: makes this rank's sign.
        silent_s: how long a rank may give none.
    """

    def __init__(self, own: Callable[[], Sign], silent_s: float) -> None:
        self.own, self.silent_s = own, silent_s
        self._selector = selectors.DefaultSelector()
        self._beat = time.monotonic()

    def turn(self) -> Verdict | None:
        """Wait for messages, at most until the next beat; what is wrong, if anything is."""
        wait = max(0.0, self._beat + BEAT_S - time.monotonic())
        for key, _ in self._selector.select(wait):
            verdict = self._take(key.data)
            if verdict is not None:
                return verdict
        elapsed = time.monotonic() - self._beat
        if elapsed < BEAT_S:
            return None
        self._beat += elapsed
        return self._at_beat(elapsed)

    def tell(self, message: Message) -> None:
        """To everybody at the other end."""
        raise NotImplementedError

    def close(self) -> None:
        """End the connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _take(self, data: Any) -> Verdict | None:
        raise NotImplementedError

    def _at_beat(self, elapsed: float) -> Verdict | None:
        raise NotImplementedError


class Alone(Line):
    """A job of one rank: only whether it gets on."""

    def __init__(self, own: Callable[[], Sign], silent_s: float, stuck_s: float | None) -> None:
        super().__init__(own, silent_s)
        self.stuck_s = stuck_s

    def tell(self, message: Message) -> None:
        """Nobody is there."""

    def turn(self) -> Verdict | None:
        time.sleep(min(BEAT_S, 0.5))
        return find_hung([self.own()], self.stuck_s)


class Hub(Line):
    """Rank 0's end: hears every rank and judges.

    Attributes:
        port, token: what the others need to connect.
    """

    def __init__(self, own: Callable[[], Sign], ranks: Iterable[int], silent_s: float, stuck_s: float | None) -> None:
        super().__init__(own, silent_s)
        self.stuck_s, self.token = stuck_s, secrets.token_hex(16)
        self._peers = {rank: _Peer(Sign(rank, "unknown host"), Silence()) for rank in ranks}
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        else:
            self._listener = socket.create_server(("", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def tell(self, message: Message) -> None:
        for peer in self._peers.values():
            if peer.wire is not None and not peer.left:
                peer.wire.send(message)

    def _take(self, data: Any) -> Verdict | None:
        if data is None:
            with contextlib.suppress(OSError):
                wire = Wire(self._listener.accept()[0])
                self._selector.register(wire.socket, selectors.EVENT_READ, wire)
            return None
        messages, stands = data.receive()
        peer = next((peer for peer in self._peers.values() if peer.wire is data), None)
        for message in messages:
            if peer is None:
                peer = self._admit(data, message)
            if peer is None:
                stands = False
                break
            verdict = self._hear(peer, message)
            if verdict is not None:
                return verdict
        if not stands:
            self._selector.unregister(data.socket)
            data.socket.close()
            if peer is not None and not peer.left:
                peer.left = True
                return Verdict("died", brought_up(peer.sign, self.own()))
        return None

    def _admit(self, wire: Wire, message: Message) -> _Peer | None:
        known = secrets.compare_digest(str(message.get("token", "")), self.token)
        peer = self._peers.get(message["sign"]["rank"]) if known else None
        if peer is not None and peer.wire is None:
            peer.wire = wire
            return peer
        return None

    def _hear(self, peer: _Peer, message: Message) -> Verdict | None:
        peer.silence.seconds = 0.0
        if "sign" in message:
            peer.sign = Sign(**message["sign"])
        if "bye" in message:
            peer.left = True
        if "failed" in message:
            peer.left = True
            return Verdict("failed", peer.sign, message["failed"], lost=message["lost"])
        return None

    def _at_beat(self, elapsed: float) -> Verdict | None:
        self.tell({"beat": True})
        own = self.own()
        present = [peer for peer in self._peers.values() if not peer.left]
        for peer in present:
            peer.silence.add(elapsed)
        silent = max(present, key=lambda peer: peer.silence.seconds / patience(peer.sign, own), default=None)
        if silent is not None and silent.silence.seconds > self.silent_s * patience(silent.sign, own):
            return Verdict("silent", brought_up(silent.sign, own), f"{silent.silence.seconds:.0f} s")
        return find_hung([own, *(peer.sign for peer in present)], self.stuck_s)


class Spoke(Line):
    """Any other rank's end: tells its signs, and hears of rank 0 and its verdicts.

    It waits for rank 0's sign somewhat longer than rank 0 waits for its own, so that of two who no longer hear each
    other the first to judge is rank 0.

    Args:
        first: what is known of rank 0.

    Raises:
        OSError: rank 0 can't be reached.
    """

    def __init__(
        self, own: Callable[[], Sign], silent_s: float, address: str, port: int, token: str, first: Sign
    ) -> None:
        super().__init__(own, silent_s + 2 * BEAT_S)
        self._wire = Wire(socket.create_connection((address, port), timeout=CONNECT_S))
        self._selector.register(self._wire.socket, selectors.EVENT_READ, self._wire)
        self._first, self._silence, self._released = first, Silence(), False
        self.tell({"token": token, "sign": vars(own())})

    @property
    def address(self) -> str:
        """This host's, towards rank 0."""
        return str(self._wire.socket.getsockname()[0]).removeprefix("::ffff:")

    def tell(self, message: Message) -> None:
        self._wire.send(message)

    def _take(self, data: Any) -> Verdict | None:
        messages, stands = data.receive()
        for message in messages:
            self._silence.seconds = 0.0
            if "verdict" in message:
                return Verdict.from_json(message["verdict"])
            if "failed" in message:
                return Verdict("failed", self._of_first(), message["failed"], lost=message["lost"])
            self._released = self._released or "bye" in message
        if not stands:
            self._selector.unregister(data.socket)
            if not self._released:
                self._released = True
                return Verdict("died", self._of_first())
        return None

    def _at_beat(self, elapsed: float) -> Verdict | None:
        own = self.own()
        self.tell({"sign": vars(own)})
        self._silence.add(elapsed)
        if self._silence.seconds > self.silent_s * patience(self._first, own) and not self._released:
            return Verdict("silent", self._of_first(), f"{self._silence.seconds:.0f} s")
        return None

    def _of_first(self) -> Sign:
        """Rank 0 tells no phase of its own."""
        return brought_up(self._first, self.own())
