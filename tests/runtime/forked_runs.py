"""`alpa-mlir-run` again and again from one process that has imported everything: each line in its own fork.

A line of standard input is a list of arguments as JSON; the answer is a line of JSON, [exit status, stdout, stderr].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import ranks


class Runs:
    """The process, from the side that asks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=ranks.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object) -> ranks.Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return ranks.Outcome(code, out, err, 0.0)

    def end(self) -> None:
        self._process.communicate()


def serve() -> None:
    import alpa_mlir.reference
    import alpa_mlir.runtime.process  # noqa: F401
    from alpa_mlir.tools import run
    from alpa_mlir.tools.diagnostics import guarded

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = guarded(run.NAME, run.main, json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            status = os.waitpid(child, 0)[1]
            out.seek(0)
            err.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), flush=True)


if __name__ == "__main__":
    serve()
