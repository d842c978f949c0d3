"""An evaluator or trainer with its arguments, as a job of a table: what it is, and the folder that it has."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch

from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.version import __version__

from ..results import RESULTS

__all__ = ['OUT', 'ROOT', 'WEIGHTS', 'Plan', 'RunCommand', 'Scale', 'versions']

OUT, ROOT, WEIGHTS = '{out}', '{root}', '{weights}'
"""In arguments: the job's own folder of results, the user's folder of a data set, and that of imported weights. A job
does not depend on where any of them lies."""

RunCommand = Callable[[Sequence[str], Path], None]
"""Runs a command by its words after `tinyvit-zoo` and writes what it says to a file; raises if it fails."""


class Scale(StrEnum):
    """How much of a table's work is done."""

    DIGITS = 'digits'
    FULL = 'full'


@dataclass(frozen=True)
class Plan:
    """An evaluator or trainer with arguments. Two plans with one key are one job, whatever tables ask for it.

    Attributes:
        arguments: After `tinyvit-zoo`, with the places `OUT`, `ROOT`, `WEIGHTS` and {0}, {1}: the folders of what it
            needs.
        needs: Jobs that come before it.
        protocol: What its results must say of themselves, see `protocol.facts_of`.
        weights: The released model that it begins with, 'architecture.tag'; empty if it begins with random weights or
            with those of a job that it needs. The hash of the weights is part of the finished job.
        data: Name of the data set, below the user's folder of data sets, or of one that is drawn here; empty for data
            that comes with a library.
        results: File of its folder that it leaves in the end.
    """

    arguments: tuple[str, ...]
    needs: tuple['Plan', ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ''
    data: str = ''
    results: str = RESULTS

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the job is, as JSON holds it."""
        facts = dict(
            arguments=self.arguments, needs=[need.key for need in self.needs], protocol=self.protocol,
            weights=self.weights, data=self.data, versions=versions(),
        )  # fmt: skip
        return json.loads(json.dumps(facts))

    @cached_property
    def key(self) -> str:
        """sha256 (hex) of command, protocol, weights, data and versions."""
        return json_hash(self.facts)

    @property
    def command(self) -> str:
        """As a user types it: the places are OUT, ROOT, FILE (of the weights), and folders of other jobs in OUT."""
        folders = [f'OUT/jobs/{need.folder_name}/out' for need in self.needs]
        return shlex.join(['tinyvit-zoo', *self.words('OUT', 'ROOT', folders, 'FILE')])

    @property
    def folder_name(self) -> str:
        """Of its folder among the jobs."""
        return f'{self.arguments[0]}-{self.key[:16]}'

    def words(self, out: str, root: str, needs: Sequence[str], weights: str = '') -> list[str]:
        """The arguments with their places filled."""
        return [word.format(*needs, out=out, root=root, weights=weights) for word in self.arguments]

    def chain(self) -> Iterator['Plan']:
        """What it needs, from the first job on, and then itself."""
        for need in self.needs:
            yield from need.chain()
        yield self


def versions() -> dict[str, str]:
    """Of what a number depends on."""
    return dict(tinyvit_zoo=__version__, torch=torch.__version__, timm=timm.__version__)
