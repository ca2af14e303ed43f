"""ReplyCache: what was answered, so that a retry gets the same answer and runs nothing."""

from __future__ import annotations

from collections import OrderedDict, deque


class ReplyCache:
    """The last replies of every client, bounded per client, in clients and in bytes.

    Args:
        max_per_client: replies kept per client.
        max_clients: clients kept; the one heard from least recently goes first.
        max_bytes: of all replies together.
    """

    def __init__(self, max_per_client: int = 256, max_clients: int = 256, max_bytes: int = 32 << 20) -> None:
        self._max_per_client = max_per_client
        self._max_clients = max_clients
        self._max_bytes = max_bytes
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._latest: _Client | None = None
        self.num_bytes = 0

    def get(self, client: str, counter: int) -> bytes | None:
        """Return the reply to a request answered before, None if there is none here."""
        known = self._clients.get(client)
        if known is None or counter > known.highest:
            return None
        return next((reply for number, reply in known.replies if number == counter), None)

    def is_forgotten(self, client: str, counter: int) -> bool:
        """Return whether a request without a reply here may have been answered before."""
        known = self._clients.get(client)
        return known is not None and counter <= known.highest_dropped

    def is_new(self, client: str, counter: int) -> bool:
        """Return whether a request is later than all that its client was answered; the usual case, told at once."""
        known = self._clients.get(client)
        return known is None or counter > known.highest

    def put(self, client: str, counter: int, reply: bytes) -> None:
        """Keep (or replace) the reply to one request."""
        known = self._clients.get(client)
        if known is None:
            known = self._add(client)
        if known is not self._latest:
            self._latest = known
            self._clients.move_to_end(client)
        if counter > known.highest:
            known.highest = counter
        else:
            self._remove(known, counter)
        known.replies.append((counter, reply))
        self.num_bytes += len(reply)
        if len(known.replies) > self._max_per_client:
            self._drop_oldest(known)
        while self.num_bytes > self._max_bytes and self._drop_of_least_recent():
            pass

    def _add(self, client: str) -> _Client:
        known = self._clients[client] = _Client()
        if len(self._clients) > self._max_clients:
            _, dropped = self._clients.popitem(last=False)
            self.num_bytes -= sum(len(reply) for _, reply in dropped.replies)
        return known

    def _remove(self, known: _Client, counter: int) -> None:
        for entry in known.replies:
            if entry[0] == counter:
                known.replies.remove(entry)
                self.num_bytes -= len(entry[1])
                return

    def _drop_of_least_recent(self) -> bool:
        """Drop one reply of whom was heard from least recently, of those who have any."""
        known = next((known for known in self._clients.values() if known.replies), None)
        if known is not None:
            self._drop_oldest(known)
        return known is not None

    def _drop_oldest(self, known: _Client) -> None:
        counter, reply = known.replies.popleft()
        self.num_bytes -= len(reply)
        known.highest_dropped = max(counter, known.highest_dropped)


class _Client:
    """(counter, reply) of one client, oldest first, and the highest counters answered and dropped."""

    __slots__ = ("highest", "highest_dropped", "replies")

    def __init__(self) -> None:
        # Most requests are new, so that nothing is looked for: what counts is that little memory is touched.
        self.replies: deque[tuple[int, bytes]] = deque()
        self.highest = self.highest_dropped = -1
