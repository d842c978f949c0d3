"""Runs of tinyvit-zoo as processes of their own, without the seconds that each would take to import everything.

A first process imports it all, with the environment that the Hub's client reads at its import, and forks for each
run: the runs are real processes, which can be killed and have limits, with real connections. The pauses that the Hub's
client makes between its tries are cut short.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minihub import git_id

__all__ = ['HubClient', 'Run', 'assert_cache_is_whole', 'assert_refused', 'contents']


class Run:
    """A process under way: `kill` it, or `wait` for its (exit code, stdout, stderr)."""

    def __init__(self, client: 'HubClient', pid: int, folder: Path) -> None:
        self.client, self.pid, self.folder = client, pid, folder

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> tuple[int, str, str]:
        code = self.client.ask(dict(wait=self.pid))
        return code, (self.folder / 'out').read_text(), (self.folder / 'err').read_text()


class HubClient:
    """Starts runs with an environment; `home` is the Hub's cache of all of them."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.home = root, root / 'huggingface'
        env = os.environ | environment | dict(HF_HOME=str(self.home), OMP_NUM_THREADS='1')
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: dict[str, Any]) -> int:
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *args: Any, python: str = '', largest_file: int | None = None) -> Run:
        """Start `tinyvit-zoo ARGS`, or a piece of Python; no file that it writes may get larger than so many bytes."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        request = dict(args=[str(a) for a in args], python=python, largest_file=largest_file, folder=str(folder))
        return Run(self, self.ask(request), folder)

    def run(self, *args: Any, **kwargs: Any) -> tuple[int, str, str]:
        return self.start(*args, **kwargs).wait()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(300)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def assert_cache_is_whole(client: HubClient) -> None:
    """Every entry has the content that its name stands for: sha256 of large files, git's id of the others."""
    for blob in client.home.rglob('blobs/*'):
        if blob.suffix != '.incomplete':  # of a process that was killed: no entry, and nobody reads it
            data = blob.read_bytes()
            assert blob.name in (hashlib.sha256(data).hexdigest(), git_id(data))
    for link in client.home.rglob('snapshots/*/*'):
        assert link.exists()


def assert_refused(done: tuple[int, str, str], *words: str) -> None:
    """It failed with one sentence that says all of these words."""
    code, _, err = done
    assert code == 1, done
    assert len(err.splitlines()) == 1, err
    assert 'Traceback' not in err
    for word in words:
        assert word in err, err


def serve() -> None:
    """Read requests from stdin; answer with the process id of a run, or the exit code of one that is over."""
    import time

    import huggingface_hub.hf_api  # noqa: F401

    import tinyvit_zoo.cli.app
    import tinyvit_zoo.hub.push  # noqa: F401

    with suppress(ImportError):  # some runs load models by it
        from transformers import AutoModel, AutoModelForImageClassification  # noqa: F401

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    for line in sys.stdin:
        request = json.loads(line)
        if 'wait' in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request['wait'], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                run_one(**request)
        print(answer, flush=True)


def run_one(args: Sequence[str], python: str, largest_file: int | None, folder: str) -> None:
    """Be the run, in a forked process; does not return."""
    import resource
    import traceback

    from tinyvit_zoo.cli.app import run_app

    for name, number in (('out', 1), ('err', 2)):
        os.dup2(os.open(f'{folder}/{name}', os.O_WRONLY | os.O_CREAT), number)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ['tinyvit-zoo', *args]
    code = 1
    try:
        exec(python) if python else run_app()
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    serve()
