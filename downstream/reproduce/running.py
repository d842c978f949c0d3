"""Jobs on disk: one is claimed, run, sealed, and read back if it is whole and of the protocol that was asked for."""

import hashlib
import itertools
import json
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyvit_zoo.build import load_model
from tinyvit_zoo.checkpoints import imported_path, read_checkpoint
from tinyvit_zoo.common.errors import EvaluationError, WeightsNotFoundError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.folders import swap_in
from tinyvit_zoo.common.hashes import json_hash, state_hash, tensors_hash
from tinyvit_zoo.common.paths import read_json
from tinyvit_zoo.common.text import as_sentence, reason
from tinyvit_zoo.data.shapes import make_detection_set, make_segmentation_set
from tinyvit_zoo.training.run_state import BEST, STATE

from .plans import WEIGHTS, Plan, RunCommand
from .protocol import facts_of, first_difference, start_hash_of, weights_hash_of

__all__ = ['Busy', 'JobError', 'Jobs', 'released_hash']

JOB, LOCK, LOG, RESULT_FOLDER = 'job.json', 'claim.lock', 'log.txt', 'out'
SHARED_ROOTS = {'imagenet-real': ('imagenet-real', 'imagenet-1k')}
"""Folders that hold a data set, where it has none of its own name: ReaL is other labels of the same images."""

DRAWN: dict[str, Callable[[Path], None]] = {'shapes': make_detection_set, 'shapes_ade': make_segmentation_set}
"""Data sets that are made beside the jobs."""

MODEL_OF_ANOTHER = ('evaluate', 'probe', 'fewshot')
"""Evaluators, whose weights are those that they were given."""


class JobError(EvaluationError):
    """A job has failed; the message is the command's own."""


class Busy(Exception):  # noqa: N818  no error: another process is running it
    """Another process has claimed the job."""


@dataclass(frozen=True)
class Jobs:
    """A folder of jobs, which tables and processes may share.

    A job's folder holds the results of its command in `out`, what it said in `log.txt`, and, once it has finished,
    `job.json`: what the job is, and the hash of its results. A claim is a lock of the system on `claim.lock`, which
    ends with the process that holds it: no claim of a dead process is left.

    Attributes:
        folder: Of all jobs; None if none is kept, to read only.
        run: Runs a command; None to read only.
        root: The user's folder of data sets, each below its name.
        say: Prints a line.
        failed: Messages of jobs that have failed since this was made, by key: several rows may need the same job.
    """

    folder: Path | None
    run: RunCommand | None = None
    root: Path | None = None
    say: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)

    def results_of(self, plan: Plan) -> dict[str, Any] | None:
        """The results of a finished job of exactly this plan; None if there are none.

        Anything else in its folder is said and not used.

        Raises:
            WeightsNotFoundError, CheckpointError: If the released weights cannot be read, with which those of the job
                are compared.
        """
        if self.folder is None or not (self._place(plan) / JOB).is_file():
            return None
        results, problem = self._read(plan)
        if problem:
            self.say(f'{self._place(plan) / JOB} is not used: {problem}.')
            return None
        return results

    def finish(self, plan: Plan, wait: bool = False) -> dict[str, Any]:
        """The results of a plan, whose job is run if it has not finished, and those that it needs before it.

        Args:
            plan: What is to be there.
            wait: For another process that has claimed it, rather than raise.

        Raises:
            Busy: If another process runs it.
            JobError: If its command, or that of a job that it needs, fails.
            CheckpointError: If the released weights cannot be read.
        """
        for need in plan.needs:
            self.finish(need, wait)
        with self._claimed(plan, wait):
            found = self.results_of(plan)
            if found is not None:
                return found
            if plan.key in self.failed:
                raise JobError(self.failed[plan.key])
            try:
                self._run(plan)
            except JobError as e:
                self.failed[plan.key] = str(e)
                raise
            results, problem = self._read(plan)
            if problem:
                raise JobError(f'{plan.command} has finished, but not as requested: {problem}.')
            assert results is not None
            return results

    def data_folder(self, name: str) -> Path | None:
        """Where a data set is: the user's, or one that is drawn; None if it is not there."""
        if name in DRAWN:
            return self.folder and self.folder / name
        for folder in SHARED_ROOTS.get(name, (name,)):
            if self.root is not None and (self.root / folder).is_dir():
                return self.root / folder
        return None

    def _place(self, plan: Plan) -> Path:
        assert self.folder is not None
        return self.folder / plan.folder_name

    def _out(self, plan: Plan) -> Path:
        return self._place(plan) / RESULT_FOLDER

    def _words(self, plan: Plan) -> list[str]:
        root = self.data_folder(plan.data) if plan.data else None
        weights = str(imported_path(plan.weights)) if plan.weights else ''
        return plan.words(str(self._out(plan)), str(root or ''), [str(self._out(need)) for need in plan.needs], weights)

    @contextmanager
    def _claimed(self, plan: Plan, wait: bool) -> Iterator[None]:
        place = self._place(plan)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EvaluationError(f'{place} cannot be written to ({reason(e)}): choose another folder.') from e
        lock = FileLock(place / LOCK)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout as e:
            raise Busy from e
        except (OSError, NotImplementedError):  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def _run(self, plan: Plan) -> None:
        """Run the command; one that was killed goes on from its own state. Seal its results."""
        assert self.run is not None
        out, log = self._out(plan), self._place(plan) / LOG
        if (self._place(plan) / JOB).exists():  # of something else, and so is the state beside it
            self._set_aside(plan)
        if plan.data in DRAWN:
            self._draw(plan.data)
        words, weights = self._words(plan), released_hash(plan.weights)
        self.say(f'Runs {plan.command}')
        started = time.process_time()
        try:
            self.run(words, log)
            content = (out / plan.results).read_bytes()
        except JobError:
            raise
        except Exception as e:  # whatever a command ends in, the table goes on
            with suppress(OSError), log.open('a', encoding='utf-8', errors='backslashreplace') as file:
                traceback.print_exc(file=file)
            raise JobError(f'{reason(as_sentence(e) or e)} (see {log})') from e
        job = dict(
            plan.facts, key=plan.key, weights_sha256=weights, results_sha256=hashlib.sha256(content).hexdigest(),
            cpu_seconds=round(time.process_time() - started, 1),
        )  # fmt: skip
        text = json.dumps(dict(job, sha256=json_hash(job)), indent=2) + '\n'
        write_whole(self._place(plan) / JOB, text.encode())
        for name in (STATE, BEST):  # five times the size of the model, and nothing resumes a finished job
            (out / name).unlink(missing_ok=True)

    def _draw(self, name: str) -> None:
        """Make a set of shapes, whole or not at all."""
        folder = self.data_folder(name)
        assert folder is not None
        if not folder.is_dir():
            with swap_in(folder) as new:
                DRAWN[name](new)

    def _set_aside(self, plan: Plan) -> None:
        place = self._place(plan)
        number = next(n for n in itertools.count(1) if not (place / f'unused-{n}').exists())
        (place / f'unused-{number}').mkdir()
        for name in (RESULT_FOLDER, JOB):
            if (place / name).exists():
                (place / name).rename(place / f'unused-{number}' / name)

    def _read(self, plan: Plan) -> tuple[dict[str, Any] | None, str]:
        """Results of a finished job, and why they are not those of this plan; empty if they are."""
        try:
            job = read_json(self._place(plan) / JOB)
            content = (self._out(plan) / plan.results).read_bytes()
            results = json.loads(content) if plan.results.endswith('.json') else {}
            problem = self._problem(plan, job, content, results)
        except (EvaluationError, WeightsNotFoundError):
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None, 'it is not a complete result'
        return (None, problem) if problem else (results, '')

    def _problem(self, plan: Plan, job: Mapping[str, Any], content: bytes, results: Mapping[str, Any]) -> str:
        """The first thing that is not as the plan has it, in words."""
        sealed = {name: value for name, value in job.items() if name != 'sha256'}
        if job['sha256'] != json_hash(sealed) or job['results_sha256'] != hashlib.sha256(content).hexdigest():
            return 'it was changed after the job'
        if job['key'] != plan.key or {name: job.get(name) for name in plan.facts} != plan.facts:
            return 'it is of another job or other versions'
        if plan.arguments[0] == 'detect':  # never a measurement here: sealed, and of this job
            return ''
        command = facts_of(dict(results, command=shlex.join(['tinyvit-zoo', *self._words(plan)])))['command']
        wanted = dict(plan.protocol, command=command, versions=plan.facts['versions'])
        difference = first_difference(facts_of(results), json.loads(json.dumps(wanted)))
        if difference:
            return difference
        if plan.weights and job['weights_sha256'] != released_hash(plan.weights):
            return f'its weights are not those of {plan.weights}'
        if WEIGHTS in plan.arguments and start_hash_of(results) != imported_hash(plan.weights):
            return f'it did not start from {plan.weights}'
        given = self._given_weights(plan, job)
        if given and weights_hash_of(results) != given:
            return 'its weights are not those of the job that it needs' if plan.needs else 'its weights are others'
        return ''

    def _given_weights(self, plan: Plan, job: Mapping[str, Any]) -> str:
        """Hash of the weights that an evaluator was given; empty for a trainer, whose results are of what it made."""
        if plan.arguments[0] not in MODEL_OF_ANOTHER:
            return ''
        if plan.weights:
            return str(job['weights_sha256'])
        (need,) = plan.needs
        return weights_hash_of(read_json(self._out(need) / need.results))


@cache
def released_hash(name: str) -> str:
    """sha256 (hex) of the state dict of released weights; empty for no name.

    Raises:
        CheckpointError: If they cannot be found or read.
    """
    return state_hash(load_model(name)) if name else ''


@cache
def imported_hash(name: str) -> str:
    """sha256 (hex) of the tensors in the file of imported weights.

    Raises:
        CheckpointError: If they cannot be found or read.
    """
    return tensors_hash(read_checkpoint(imported_path(name)))
