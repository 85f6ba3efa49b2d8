"""The remote side: a webshop that costs next to nothing, so that what is measured is the contender.

`python -m bench.remote [--latency-ms 20]` listens on a free port of 127.0.0.1, prints `ready <url>`, and ends when its
input does. Every order exists. An answer is delayed by the latency without holding up others.

  GET, PATCH, PUT  /api/order/<id>/   the order of `bench.work.document`, with what was written to it
  GET              /_counts           {"calls": {"GET": n, "PATCH state": n, ...}, "twice": n, "failed": n}

`twice` counts writes of a kind that an order had already; `failed`, requests that were answered with an error.
"""

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from typing import Any

from bench.work import document

_REQUEST = re.compile(rb"(GET|PATCH|PUT) /api/order/(\d+)/ HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
# Most reads are of orders that nobody wrote to: their text is this one with another id. The ids of its lines begin
# with the order's own, so that one replacement does them all.
_TEMPLATE = json.dumps(document(7), separators=(",", ":")).encode()
_NOT_FOUND = b'{"detail":"Not found."}'


class Shop:
    """The orders that were written to, and the calls that were made."""

    def __init__(self) -> None:
        self._written: dict[int, dict[str, Any]] = {}
        self._seen: set[tuple[int, str]] = set()
        self._calls: Counter[str] = Counter()
        self._twice = 0
        self._failed = 0

    def answer(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Status and JSON text for one request."""
        if head.startswith(b"GET /_counts "):
            return 200, self._counts()
        request = _REQUEST.match(head)
        if request is None:
            self._failed += 1
            return 404, _NOT_FOUND
        method, order = request[1].decode(), int(request[2])
        if method == "GET":
            self._calls["GET"] += 1
            return 200, self._text(order)
        return 200, self._write(method, order, body)

    def _write(self, method: str, order: int, body: bytes) -> bytes:
        fields = json.loads(body)
        kind = method if method == "PUT" else f"{method} {'+'.join(fields)}"
        self._calls[kind] += 1
        self._twice += (order, kind) in self._seen
        self._seen.add((order, kind))
        known = self._written.get(order) or document(order)
        self._written[order] = known | fields
        return self._text(order)

    def _text(self, order: int) -> bytes:
        written = self._written.get(order)
        if written is None:
            return _TEMPLATE.replace(b'"id":7', b'"id":%d' % order).replace(b'"CS7"', b'"CS%d"' % order)
        return json.dumps(written, separators=(",", ":")).encode()

    def _counts(self) -> bytes:
        counts = {"calls": self._calls, "twice": self._twice, "failed": self._failed}
        return json.dumps(counts).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it are answered in turn."""

    def __init__(self, shop: Shop, latency: float) -> None:
        self._shop = shop
        self._latency = latency
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (request := self._next_request()) is not None:
            status, text = self._shop.answer(*request)
            self._answer_later(status, text)

    def _next_request(self) -> tuple[bytes, bytes] | None:
        """Head and body of a request that has arrived completely."""
        head, found, rest = self._received.partition(_HEAD_END)
        if not found:
            return None
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return None
        self._received = rest[size:]
        return head + b"\r\n", rest[:size]

    def _answer_later(self, status: int, text: bytes) -> None:
        answer = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
            status,
            b"OK" if status == 200 else b"Not Found",
            len(text),
            text,
        )
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._send, answer)
        else:
            self._send(answer)

    def _send(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


async def serve(latency: float) -> None:
    """Serve until standard input ends. `latency` in seconds per call."""
    loop = asyncio.get_running_loop()
    shop = Shop()
    server = await loop.create_server(lambda: Connection(shop, latency), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"ready http://127.0.0.1:{port}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.remote", description="A cheap remote side.")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to every answer (0)")
    asyncio.run(serve(parser.parse_args().latency_ms / 1000))


if __name__ == "__main__":
    main()
