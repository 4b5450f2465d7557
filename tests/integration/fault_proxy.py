"""An object store that stumbles: an HTTP proxy that spoils some of the requests, by a seed.

A spoilt request is answered with 500 or 503, its connection is reset, its answer breaks in the
middle of the body or comes late. All of these come equally often, whatever the seed. Half of them
have reached the server before, so that what was asked for is done and nobody knows.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "cut", "slow")
_CODES = {"500": "InternalError", "503": "SlowDown"}


@dataclass(kw_only=True)
class FaultProxy:
    """A running proxy."""

    endpoint: str
    server: tuple[str, int]
    random: random.Random
    rate: float
    """Share of the requests that are spoilt."""
    pause: float
    """Seconds that a slow answer takes longer."""
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """By kind, and ``before`` or ``after`` the request reached the server."""

    @property
    def kinds(self) -> Counter[str]:
        """The faults by kind alone."""
        counts = Counter(dict.fromkeys(KINDS, 0))
        for name, count in self.faults.items():
            counts[name.split()[0]] += count
        return counts

    def _draw_kind(self) -> str:
        """One of the kinds that have come least, so that a few faults are of every kind."""
        counts = self.kinds
        return self.random.choice([k for k in KINDS if counts[k] == min(counts.values())])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read_request(reader, writer)
        self.requests += 1
        kind, after = "", False
        if self.random.random() < self.rate:
            kind, after = self._draw_kind(), self.random.random() < 0.5
            # Only an answer that there is can break, or come late.
            after = after or kind in ("cut", "slow")
            self.faults[f"{kind} {'after' if after else 'before'}"] += 1
        answer = b""
        if after or not kind:
            answer = await self._forward(request)
        if kind == "reset":
            # Closing with nothing to linger for sends a reset.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if kind == "slow":
            await asyncio.sleep(self.pause)
        if kind in _CODES:
            answer = _refusal(kind, head_only=request.startswith(b"HEAD"))
        if kind == "cut":
            head, _, body = answer.partition(b"\r\n\r\n")
            answer = head + b"\r\n\r\n" + body[: len(body) // 2] if body else head[: len(head) // 2]
        writer.write(answer)
        await writer.drain()

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.server)
        writer.write(request)
        await writer.drain()
        answer = await reader.read(-1)  # it closes: the request asks for that
        writer.close()
        return answer


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """One request with its body, changed to ask for the connection to be closed after it."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines)}
    if headers.get(b"expect", b"").lower() == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    body = b""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while True:
            size = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(size.partition(b";")[0], 16) + 2)
            body += size + chunk
            if len(chunk) == 2:
                break
    else:
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    kept = [x for x in lines if x.partition(b":")[0].lower() not in (b"connection", b"expect")]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", body])


def _refusal(status: str, *, head_only: bool) -> bytes:
    code = _CODES[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>spoilt</Message></Error>"
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return (head if head_only else head + body).encode()


@contextmanager
def fault_proxy(
    endpoint: str, *, seed: int, rate: float = 0.05, pause: float = 1.0
) -> Iterator[FaultProxy]:
    """A proxy in front of the server at ``endpoint`` while the block runs."""
    there = urlsplit(endpoint)
    assert there.hostname and there.port
    loop = asyncio.new_event_loop()
    proxy = FaultProxy(
        endpoint="",
        server=(there.hostname, there.port),
        random=random.Random(seed),
        rate=rate,
        pause=pause,
    )
    listening = loop.run_until_complete(
        asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
    )
    proxy.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
