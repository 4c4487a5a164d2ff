"""Many connections that follow one script, in one thread: opened, fed, read, and opened again when they are closed."""

from __future__ import annotations

import collections
import selectors
import ssl
import time

from tests.strangers.attacks import Attack
from tests.strangers.peer import WRITE, Peer

_OPENED_AT_ONCE = 200
_LOOK_EVERY_S = 0.01  # for connections that may be opened


class Crowd:
    """The connections of one attack, from construction until `close`.

    Args:
        attack: What they do.
        token: That goes with their calls; empty: none.
        context: Of their handshakes; None for plain text.
        address: Of the shard.
        selector: That the caller waits with; the data of its keys are peers.

    Attributes:
        counts: What has happened, by name.
    """

    def __init__(
        self,
        attack: Attack,
        token: str,
        context: ssl.SSLContext | None,
        address: tuple[str, int],
        selector: selectors.BaseSelector,
    ) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._attack, self._script = attack, attack.script(token)
        self._context, self._address, self._selector = context, address, selector
        self._peers: set[Peer] = set()
        self._due: collections.deque[tuple[float, Peer]] = collections.deque()  # in order
        self._allowed, self._allowed_at = 0.0, time.monotonic()  # connections that may be opened, and when that was

    def close(self) -> None:
        """Closes all."""
        for peer in list(self._peers):
            self._drop(peer)

    def wait_s(self) -> float | None:
        """How long nothing has to be done if nothing happens; None: forever."""
        if len(self._peers) < self._attack.num_connections:
            return _LOOK_EVERY_S
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def serve(self, peer: Peer, events: int) -> None:
        """Something can be done for a connection."""
        if peer not in self._peers:  # closed since
            return
        before = peer.wanted
        try:
            stays = peer.go_on(events)
        except OSError:
            self.counts["closed by the server"] += 1
            stays = False
        if not stays:
            self._drop(peer)
        elif peer.wanted != before:
            self._selector.modify(peer.fd, peer.wanted, peer)

    def keep_up(self) -> None:
        """Opens connections that are missing, and has those go on whose time has come."""
        now = time.monotonic()
        more = self._allowed + (now - self._allowed_at) * self._attack.opens_per_s
        self._allowed, self._allowed_at = min(more, _OPENED_AT_ONCE), now
        for _ in range(min(self._attack.num_connections - len(self._peers), int(self._allowed))):
            self._allowed -= 1
            self._open(now)
        while self._due and self._due[0][0] <= now:
            _, peer = self._due.popleft()
            if peer in self._peers:
                self._due.append((now + self._script.every_s, peer))
                if peer.is_ready_for_more():
                    self.serve(peer, WRITE)

    def _open(self, now: float) -> None:
        peer = Peer(self._script, self._context, self.counts)
        try:
            peer.connect(self._address)
        except OSError:
            self.counts["not connected"] += 1
            peer.close()
            return
        self._peers.add(peer)
        self._selector.register(peer.fd, peer.wanted, peer)
        if self._script.every_s:
            self._due.append((now + self._script.every_s, peer))

    def _drop(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self._selector.unregister(peer.fd)
        peer.close()
