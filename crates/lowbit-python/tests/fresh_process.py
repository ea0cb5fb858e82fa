"""Programs in processes of their own, without the seconds that importing torch takes each time.

Run as a program, this is the server: it imports torch once, then forks for each program that it
reads from its standard input, and answers with what that printed and how it ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    ok: bool
    printed: str


class FreshProcesses:
    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )

    def run(self, program: str, **environment: str) -> Ended:
        """Run a program with other variables in its environment; empty ones are removed."""
        assert self._server.stdin and self._server.stdout
        print(json.dumps([program, environment]), file=self._server.stdin, flush=True)
        return Ended(*json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()


def serve() -> None:
    import torch._dynamo  # noqa: F401  # What bitsandbytes imports, too.

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        program, environment = json.loads(line)
        with tempfile.TemporaryFile() as printed:
            child = os.fork()
            if child == 0:
                run_in_child(program, environment, printed.fileno())
            _, status = os.waitpid(child, 0)
            printed.seek(0)
            print(json.dumps([status == 0, printed.read().decode()]), file=answers, flush=True)


def run_in_child(program: str, environment: dict[str, str], printed: int) -> None:
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.environ.update(environment)
    for name in [name for name, value in environment.items() if not value]:
        del os.environ[name]
    status = 0
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
