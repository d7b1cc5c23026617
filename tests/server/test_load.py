"""Minutes of a crowd: 64 clients that come, leave in the middle, ask for much and for little, over budget.

OCTAVO_TEST_LOAD_RECORD is a file for what was met, as JSON.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from octavo.records import describe_machine
from serving import bytewise_model, wait_until

pytestmark = pytest.mark.proof

CLIENTS = 64
RECORD = os.environ.get("OCTAVO_TEST_LOAD_RECORD")
SECONDS = float(os.environ.get("OCTAVO_TEST_LOAD_SECONDS", "180"))
COMMAND = [sys.executable, "-c", "from octavo.cli import main; main()", "serve"]


@dataclass
class Tally:
    """What the clients met."""

    ends: Counter = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)


async def crowd(url, seconds, tally):
    limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        until = time.monotonic() + seconds
        await asyncio.gather(*(visitor(client, random.Random(number), until, tally) for number in range(CLIENTS)))


async def visitor(client, choose, until, tally):
    while time.monotonic() < until:
        long = choose.random() < 0.2
        body = {
            "model": "bytes", "stream": True,
            "temperature": choose.choice([0, 0.8, 1.5]), "seed": choose.randrange(99),
            "prompt": [choose.randrange(3, 259) for _ in range(choose.randrange(200, 400) if long else 20)],
            "max_tokens": choose.randrange(1, 110),
        }  # fmt: skip
        leaves_after = choose.randrange(1, 20) if choose.random() < 0.3 else None
        tally.ends[await visit(client, body, leaves_after, tally)] += 1


async def visit(client, body, leaves_after, tally):
    """One request, and how it ended."""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            assert response.status_code == 429 and "retry-after" in response.headers
            await asyncio.sleep(0.2)
            return "429"
        newest, events = None, 0
        last = ""
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            last, now, events = line, time.perf_counter(), events + 1
            if newest is not None:
                tally.gaps.append(now - newest)
            newest = now
            if events == leaves_after:
                return "left"
        if last == "data: [DONE]":
            return "done"
        return "error event" if "error" in json.loads(last[6:]) else "cut"


def gauges(url):
    page = httpx2.get(f"{url}/metrics").text
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, value in lines}


def test_a_crowd_leaves_nothing_behind(tmp_path):
    folder = bytewise_model(tmp_path / "bytes")
    options = ["--port", "0", "--rows", "16", "--queue", "40", "--cache", "0.001"]
    server = subprocess.Popen([*COMMAND, folder, *options], stderr=subprocess.PIPE, text=True)
    try:
        url = server.stderr.readline().split()[-1]
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, seconds=60)
        tally, process = Tally(), psutil.Process(server.pid)
        asyncio.run(crowd(url, SECONDS / 3, tally))
        memory, files = process.memory_info().rss, process.num_fds()
        asyncio.run(crowd(url, SECONDS * 2 / 3, tally))
        wait_until(lambda: gauges(url)["octavo_pages_held"] == 0)
        assert process.memory_info().rss < memory * 1.05
        assert process.num_fds() <= files + 2
        values = gauges(url)
        assert values["octavo_waiting"] == values["octavo_writing"] == values["octavo_reading"] == 0
        assert values["octavo_set_back_total"] > 0, "memory was never scarce"
        assert tally.ends["done"] > 100 and tally.ends["left"] > 30 and tally.ends["429"] > 0
        assert tally.ends["cut"] == tally.ends["error event"] == 0
        assert httpx2.get(f"{url}/health").status_code == 200
        gaps = sorted(tally.gaps)
        met = {
            "machine": describe_machine("cpu"),
            "clients": CLIENTS,
            "seconds": SECONDS,
            "ends": dict(tally.ends),
            "gap_seconds": {share: gaps[int(len(gaps) * share / 100)] for share in (50, 95, 99)},
            "memory_growth": process.memory_info().rss / memory - 1,
            "tokens_written": values["octavo_tokens_written_total"],
            "set_back": values["octavo_set_back_total"],
            "cancelled": values["octavo_cancelled_total"],
            "pages_held_at_the_end": values["octavo_pages_held"],
        }
        print(json.dumps(met))
        if RECORD:
            Path(RECORD).write_text(json.dumps(met, indent=2) + "\n")
    finally:
        server.terminate()
        server.communicate(timeout=30)
