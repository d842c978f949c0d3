"""Processes that share work: what the first one finds, or fails of, is the same on all."""

import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tinyvit_zoo.cli.evaluator_options import processes
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.processes import Processes


def fail() -> None:
    raise EvaluationError('The folder is full: choose another.')


def ask(rank: int, store: Path, answers: Any) -> None:
    """One of two processes: asks the first for a value, and for one that it cannot give."""
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    both = Processes()
    given = both.from_first(lambda: f'of process {both.rank}')
    try:
        both.from_first(fail)
    except EvaluationError as e:
        answers.put((rank, given, str(e)))
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != 'linux', reason='the processes are forked')
def test_a_value_and_an_error_of_the_first_process_are_those_of_all(tmp_path, monkeypatch):
    monkeypatch.delitem(os.environ, 'WORLD_SIZE', raising=False)
    context = multiprocessing.get_context('fork')
    answers = context.Queue()
    started = [context.Process(target=ask, args=(rank, tmp_path / 'store', answers)) for rank in range(2)]
    for process in started:
        process.start()
    found = sorted(answers.get(timeout=500) for _ in started)
    for process in started:
        process.join()
    assert found == [(rank, 'of process 0', 'The folder is full: choose another.') for rank in range(2)]


def begin_a_command() -> None:
    with processes():
        pass


@pytest.mark.parametrize('join', [Processes, begin_a_command], ids=['evaluators', 'commands'])
def test_a_process_waits_for_more_than_half_an_hour(join, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(dist, 'init_process_group', lambda backend, timeout: given.update(timeout=timeout))
    monkeypatch.setattr(dist, 'get_rank', lambda: 0)
    monkeypatch.setattr(dist, 'destroy_process_group', lambda: None)
    join()
    assert given['timeout'] >= timedelta(hours=12)
