"""The command as a process of its own, forked from one that has imported everything already.

Python needs seconds to import torch and transformers, and a test that kills ten sweeps would spend a minute on nothing
else. What is forked here is an ordinary process in a session of its own, with arguments, an environment and output of
its own: it may be killed at any instant, and its exit code is that of any Python. The server that it is forked from has
imported modules and done nothing else. (Its order of sets is that of all its children: `fresh` has another one.)
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

NEEDED = """
duckdb nltk.stem.porter optuna pyarrow.parquet rich.console scipy.stats torch.optim transformers.masking_utils
transformers.models.llama.modeling_llama
suite.cli suite.evaluation.evaluator suite.runners suite.runners.search suite.trials.preflight suite.trials.run
""".split()
"""What a trial imports on its way. What is missing here is imported by each process for itself, as ever."""


def serve(orders: Connection) -> NoReturn:
    """Fork a process per order, and say how it ended when asked."""
    for name in NEEDED:
        __import__(name)
    gc.freeze()
    while True:
        try:
            order = orders.recv()
        except EOFError:
            os._exit(0)
        if isinstance(order, int):
            done, status = os.waitpid(order, os.WNOHANG)
            orders.send(os.waitstatus_to_exitcode(status) if done else None)
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            _become(*order)
        orders.send(pid)


def _become(words: list[str], environment: dict[str, str], folder: str, files: tuple[str, str]) -> NoReturn:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate((os.devnull, *files)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["regrade", *words]
    from suite.cli import main

    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    # What Python does at its end, but for clearing away a thousand modules: their memory is the server's too, so that
    # every page would be copied first.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def _server() -> Connection:
    """Of this process, started when it is first needed. Spawned, so that nothing of the tests is in it."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    theirs.close()
    # Before multiprocessing waits at exit for whatever it has started.
    atexit.register(ours.close)
    return ours


@dataclass
class Running:
    """A process of the command, in the manner of `subprocess.Popen`."""

    words: list[str]
    pid: int
    stdout: Path
    stderr: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            _server().send(self.pid)
            self.returncode = _server().recv()
        return self.returncode

    def kill(self) -> None:
        """It and whatever it has started."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.words, timeout)
            time.sleep(0.01)
        texts = [file.read_text() for file in (self.stdout, self.stderr)]
        return subprocess.CompletedProcess(self.words, self.returncode, *texts)


def start(*words: object, env: dict[str, str] | None = None) -> Running:
    """`regrade WORDS` in this folder; it has begun when this returns."""
    said = Path(tempfile.mkdtemp(prefix="regrade-"))
    called = list(map(str, words))
    files = said / "stdout", said / "stderr"
    _server().send((called, env or dict(os.environ), os.getcwd(), tuple(map(str, files))))
    return Running(called, _server().recv(), *files)


def run(*words: object, code: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same, to its end, which has to be with this exit code."""
    done = start(*words, env=env).wait()
    assert done.returncode == code, done.stdout + done.stderr
    return done


def fresh(*words: object) -> None:
    """The same in a Python that begins at its beginning: it imports for itself, and orders sets in a way of its own."""
    command = [sys.executable, "-c", "from suite.cli import main; main()", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
