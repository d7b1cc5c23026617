"""What the benchmarks share: where inputs lie, printing as they go, and results with commit and hardware."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octavo.records import describe_machine, write_json

ROOT = Path(__file__).parent.parent
CACHE, RESULTS = ROOT / ".cache", ROOT / "benchmarks" / "results"


def show(line: str) -> None:
    """Print at once: the runs are long."""
    print(line, flush=True)


def finish(name: str, results: dict[str, Any], misses: list[str]) -> int:
    """Write the results; the exit code, 1 where a figure missed its bar."""
    machine = describe_machine("cpu")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    label = "-".join(machine["processor"].lower().split())
    path = RESULTS / f"{name}-{label}-{commit}.json"
    RESULTS.mkdir(exist_ok=True)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {"commit": commit, "date": when, "machine": machine, "misses": misses, **results})
    show(f"wrote {path.relative_to(ROOT)}")
    for miss in misses:
        show(f"MISSED: {miss}")
    return 1 if misses else 0
