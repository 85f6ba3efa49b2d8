"""What one HTTP call costs in CPU, by the way it is made: `python -m bench.calls`. One thread, loopback, keep-alive.

Half reads, half one-field writes, as in the work of an order. The ways are interleaved; the rounds' median counts.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from bench.processes import Child

Call = Callable[[str, int, bytes | None], Any]
"""Method, order, body: the parsed answer."""

_BODY = b'{"state": "processing"}'
_HEADERS = {
    "Authorization": "Bearer example",
    "Content-Type": "application/json",
    "Accept": "application/json",
}


def plain(remote: str) -> Call:
    """As one writes it with requests."""
    session = requests.Session()
    session.headers.update(_HEADERS)

    def call(method: str, order: int, body: bytes | None) -> Any:
        answer = session.request(method, f"{remote}/api/order/{order}/", data=body, timeout=10)
        answer.raise_for_status()
        return answer.json()

    return call


def without_environment(remote: str) -> Call:
    """`trust_env` off: no look for proxies, netrc and CA bundles at each call."""
    session = requests.Session()
    session.trust_env = False
    session.headers.update(_HEADERS)

    def call(method: str, order: int, body: bytes | None) -> Any:
        answer = session.request(method, f"{remote}/api/order/{order}/", data=body, timeout=10, allow_redirects=False)
        answer.raise_for_status()
        return json.loads(answer.content)

    return call


def prepared(remote: str, *, adapter_only: bool = False) -> Call:
    """The request prepared by hand, and handed to `Session.send`, or straight to the adapter: no cookies, no hooks,
    no redirects, no history."""
    session = requests.Session()
    session.trust_env = False
    adapter = HTTPAdapter()
    session.mount("http://", adapter)
    template = requests.Request("GET", f"{remote}/api/order/1/", headers=_HEADERS).prepare()

    def call(method: str, order: int, body: bytes | None) -> Any:
        request = requests.PreparedRequest()
        request.method = method
        request.url = f"{remote}/api/order/{order}/"
        request.headers = template.headers.copy()
        request._cookies = template._cookies  # type: ignore[attr-defined]  # private, and needed
        request.hooks = template.hooks
        if body is not None:
            request.body = body
            request.headers["Content-Length"] = str(len(body))
        if adapter_only:
            answer = adapter.send(request, timeout=10)
        else:
            answer = session.send(
                request, timeout=10, allow_redirects=False, proxies={}, verify=True, cert=None, stream=False
            )
        answer.raise_for_status()
        return json.loads(answer.content)

    return call


def pool_manager(remote: str) -> Call:
    """urllib3 alone."""
    pool = urllib3.PoolManager(retries=False)

    def call(method: str, order: int, body: bytes | None) -> Any:
        url = f"{remote}/api/order/{order}/"
        answer = pool.request(method, url, body=body, headers=_HEADERS, timeout=10, redirect=False)
        if answer.status >= 400:
            raise urllib3.exceptions.HTTPError(answer.status)
        return json.loads(answer.data)

    return call


def standard_library(remote: str) -> Call:
    """http.client alone."""
    connection = http.client.HTTPConnection(urlsplit(remote).netloc, timeout=10)

    def call(method: str, order: int, body: bytes | None) -> Any:
        connection.request(method, f"/api/order/{order}/", body=body, headers=_HEADERS)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise http.client.HTTPException(answer.status)
        return json.loads(text)

    return call


WAYS: dict[str, Callable[[str], Call]] = {
    "requests, as one writes it": plain,
    "requests, trust_env off, no redirects": without_environment,
    "requests, prepared by hand, Session.send": prepared,
    "requests, prepared by hand, HTTPAdapter.send": lambda remote: prepared(remote, adapter_only=True),
    "urllib3.PoolManager": pool_manager,
    "http.client": standard_library,
}


def measure(remote: str, *, calls: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds a call, by way."""
    ways = {name: make(remote) for name, make in WAYS.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            spent[name].append(_round(call, calls))
    return {name: statistics.median(several) for name, several in spent.items()}


def _round(call: Call, calls: int) -> float:
    begun = time.process_time()
    for order in range(1, calls // 2 + 1):
        call("GET", order, None)
        call("PATCH", order, _BODY)
    return 1000 * (time.process_time() - begun) / calls


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=400, help="calls of a round (400)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orderfleet-bench-") as folder:
        child = Child("bench.remote", environment=dict(os.environ), log=Path(folder) / "remote.log")
        try:
            spent = measure(child.wait_until_ready(), calls=asked.calls, rounds=asked.rounds)
        finally:
            child.stop()
    for name, milliseconds in spent.items():
        print(f"{milliseconds:6.3f} ms  {name}")


if __name__ == "__main__":
    main()
