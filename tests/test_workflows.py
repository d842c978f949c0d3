"""GitHub workflows and pre-commit: they call targets that exist, on the versions that the package supports."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def jobs(path: Path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text())['jobs']


def commands(path: Path) -> list[str]:
    return [step['run'] for job in jobs(path).values() for step in job['steps'] if 'run' in step]


def test_there_are_workflows_for_tests_documentation_and_releases():
    assert [path.stem for path in WORKFLOWS] == ['docs', 'release', 'tests']


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_of_make_exists(path):
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    called = [word for command in commands(path) for word in re.findall(r'\bmake ([a-z-]+)', command)]
    assert set(called) <= set(targets)


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_the_repository_only(path):
    """Jobs that publish ask for more, each for itself."""
    assert yaml.safe_load(path.read_text())['permissions'] == {'contents': 'read'}


def test_the_tests_run_on_every_version_of_python_that_the_package_names():
    named = [c.rpartition(' ')[2] for c in PROJECT['classifiers'] if re.search(r'Python :: 3\.\d+$', c)]
    tests = jobs(ROOT / '.github' / 'workflows' / 'tests.yml')
    core = next(step['with']['python-version'] for step in tests['core']['steps'] if 'with' in step)
    assert [*tests['test']['strategy']['matrix']['python'], core] == named


def test_every_file_of_the_core_tests_exists():
    """`make core` names them; they import no extra but `cli`."""
    text = (ROOT / 'Makefile').read_text()
    names = re.search(r'^CORE := (.*?)(?<!\\)$', text, re.MULTILINE | re.DOTALL)[1].replace('\\\n', ' ').split()
    assert len(names) > 30
    assert [name for name in names if not (ROOT / 'tests' / f'test_{name}.py').is_file()] == []


def test_pre_commit_runs_the_ruff_of_the_constraints():
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    (repository,) = config['repos']
    assert f'ruff=={repository["rev"].removeprefix("v")}' in (ROOT / 'constraints.txt').read_text().splitlines()
