"""Renders chat templates in a process of its own, which is killed when one takes too long.

The sandbox of `templates` counts steps; what takes long within a step, only this ends. Both sides speak lines of
JSON: a `Rendering` in, its text or what is wrong with it out.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from octavo.errors import TemplateError
from octavo.model.templates import Disguise, run_template

SECONDS = 5.0


class TemplateProcess:
    """Renders as `run_template` does, but never for longer than `seconds`. It starts at the first call."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, source: str, variables: Mapping[str, Any], disguise: Disguise, now: datetime) -> str:
        question = json.dumps(
            {
                "source": source,
                "variables": dict(variables),
                "hidden": dict(disguise.hidden),
                "shown": dict(disguise.shown),
                "now": now.isoformat(),
            }
        )
        with self._lock:
            answer = self._ask(question)
        if not answer:
            raise TemplateError(
                f"the chat template takes more than {self.seconds:g} seconds; shorten the messages"
            )
        result: dict[str, str] = json.loads(answer)
        if "error" in result:
            raise TemplateError(result["error"])
        return result["text"]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, question: str) -> str:
        """The line that the process answers; none if it had to be killed."""
        if self._process is None:
            command = [sys.executable, "-c", f"from {__name__} import main; main()"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8")
        process = self._process
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        deadline = threading.Timer(self.seconds, process.kill)
        deadline.start()
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            deadline.cancel()
        if not answer:
            self._end()
        return answer

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def main() -> None:
    """What the process does: answer each line until there are no more."""
    for line in sys.stdin:
        question = json.loads(line)
        disguise = Disguise(
            {int(place): mask for place, mask in question["hidden"].items()},
            {int(place): letter for place, letter in question["shown"].items()},
        )
        now = datetime.fromisoformat(question["now"])
        try:
            answer = {"text": run_template(question["source"], question["variables"], disguise, now)}
        except TemplateError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
