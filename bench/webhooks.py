"""How many webhooks are acknowledged a second, and how long the slowest wait: ours beside the least that could do it.

`python -m bench.webhooks`: see bench/README.md. Both are served by gunicorn with one process of 16 threads; the caller
is this process, over 32 connections that stay open, each with one request under way."""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text

from bench.processes import ROOT, START_SECONDS, RunFailed
from bench.servers import SERVER, fresh_database, redis_server
from workers.embedded import free_port

SECRET = "bench-secret"
PATH = "/webhooks/storeganise/default"
CONTENDERS = ("minimal", "ours")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: acknowledged a second, and milliseconds until the answer."""

    rate: float
    median: float
    p99: float


def delivery(run: str, number: int) -> bytes:
    """A request, whole: a signed event of an order that nobody knows yet."""
    order = hashlib.sha256(f"{run}:{number}".encode()).hexdigest()[:24]
    event = {
        "id": order[::-1],
        "created": "2026-01-01T00:00:00.000Z",
        "type": "job.valetOrder.created",
        "data": {"jobId": order[::-1], "valetOrderId": order},
    }
    body = json.dumps(event, separators=(",", ":")).encode()
    signature = base64.b64encode(hmac.new(SECRET.encode(), body, hashlib.sha256).digest()).decode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json;charset=UTF-8\r\n"
        f"sg-signature: {signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _connection(port: int, requests: Iterator[bytes], until: float, seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < until:
            writer.write(next(requests))
            began = time.perf_counter()
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            await reader.readexactly(length)
            seconds.append(time.perf_counter() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RunFailed(f"answered with {head.splitlines()[0].decode()}")
    finally:
        writer.close()


async def _load(port: int, run: str, connections: int, seconds: float) -> list[float]:
    made = [delivery(run, number) for number in range(int(4000 * seconds))]
    requests = iter(made)
    took: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_connection(port, requests, until, took) for _ in range(connections)))
    return took


def _measure(port: int, run: str, options: argparse.Namespace) -> tuple[Sample, int]:
    asyncio.run(_load(port, f"{run}-warm", options.connections, 1.0))
    began = time.perf_counter()
    took = sorted(asyncio.run(_load(port, run, options.connections, options.seconds)))
    rate = len(took) / (time.perf_counter() - began)
    return Sample(rate, 1000 * statistics.median(took), 1000 * took[int(len(took) * 0.99)]), len(took)


@contextmanager
def _server(contender: str, database: str, broker: str, folder: Path) -> Iterator[int]:
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if contender == "ours":
        environment |= {
            "ORDERFLEET_HOME": str(folder),
            "DATABASE_URL": database,
            "BROKER_URL": broker,
            "WEBHOOKS_BIND": f"127.0.0.1:{port}",
            "STOREGANISE_URL": "http://127.0.0.1:9",
            "STOREGANISE_API_KEY": "bench",
            "STOREGANISE_WEBHOOK_SECRET": SECRET,
        }
        subprocess.run([sys.executable, "-m", "workers", "migrate"], env=environment, check=True, capture_output=True)
        command = ["-m", "workers", "webhooks"]
    else:
        path = database.removeprefix("sqlite:///").replace("postgresql+psycopg", "postgresql")
        environment |= {"DATABASE": path, "BROKER": broker}
        bind = ["--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--workers", "1", "--threads", "16"]
        command = ["-m", "gunicorn", *bind, "bench.comparators.minimal_webhooks:create_app()"]
    log = folder / f"{contender}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=stream, stderr=stream, cwd=ROOT)
    try:
        _wait_until_it_answers(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    async def knock() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            asyncio.run(knock())
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RunFailed(f"it does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def _run(contender: str, kind: str, options: argparse.Namespace, run: str) -> Sample:
    with (
        tempfile.TemporaryDirectory(prefix="orderfleet-bench-") as name,
        fresh_database(kind, Path(name), options.postgresql) as database,
        redis_server(Path(name)) as broker,
    ):
        with _server(contender, database, broker, Path(name)) as port:
            sample, acknowledged = _measure(port, run, options)
        engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            kept = connection.execute(text("SELECT count(*) FROM events")).scalar_one()
        engine.dispose()
        if kept < acknowledged:
            raise RunFailed(f"{acknowledged} acknowledged, {kept} kept")
        return sample


def _report(samples: dict[tuple[str, str], list[Sample]]) -> Table:
    table = Table("database", "contender", "acks/s", "median ms", "p99 ms", "acks/s of the minimal one", box=None)
    for (kind, contender), taken in samples.items():
        rate = statistics.median(one.rate for one in taken)
        least = statistics.median(one.rate for one in samples[kind, "minimal"])
        table.add_row(
            kind,
            contender,
            f"{rate:.0f}",
            f"{statistics.median(one.median for one in taken):.1f}",
            f"{statistics.median(one.p99 for one in taken):.1f}",
            f"{rate / least:.2f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="bench.webhooks", description=__doc__)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--postgresql", default=SERVER)
    options = parser.parse_args(arguments)
    samples: dict[tuple[str, str], list[Sample]] = {}
    console: Any = Console()
    try:
        for number in range(options.rounds):
            for kind in options.databases.split(","):
                for contender in CONTENDERS:
                    sample = _run(contender, kind, options, f"{number}-{contender}")
                    console.print(f"round {number + 1}: {kind} {contender} {sample.rate:.0f}/s p99 {sample.p99:.1f} ms")
                    samples.setdefault((kind, contender), []).append(sample)
    except RunFailed as failure:
        console.print(f"the run failed: {failure}")
        return 1
    console.print(_report(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
