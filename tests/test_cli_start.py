"""How the command line starts: modules that help loads, groups, completion, and one spelling of every option."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import tinyvit_zoo
from tinyvit_zoo.cli.app import PANELS, app

ROOT = Path(__file__).parent.parent

WATCHED = """
import atexit, json, sys
heavy = ('torch', 'timm', 'numpy', 'PIL', 'huggingface_hub', 'tinyvit_zoo.models', 'tinyvit_zoo.downstream')
atexit.register(lambda: print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr))
from _tinyvit_zoo_cli import main
sys.argv = ['tinyvit-zoo', *sys.argv[1:]]
main()
"""


def start(*args: str, cwd: Path = ROOT, **env: str) -> tuple[int, str, str, list[str]]:
    """What the console script does: exit code, stdout, stderr, and which heavy modules were loaded at its end."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **env}
    done = subprocess.run(
        [sys.executable, '-c', WATCHED, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    *err, loaded = done.stderr.splitlines()
    return done.returncode, done.stdout, '\n'.join(err), json.loads(loaded)


@pytest.mark.parametrize(
    ('args', 'code', 'words'),
    [
        ((), 0, 'Small vision transformers for timm'),
        (('--help',), 0, 'Small vision transformers for timm'),
        (('--version',), 0, tinyvit_zoo.__version__),
        (('knn', '--help'), 0, '--batch-size'),
        (('detect', 'train', '--help'), 0, '--work-dir'),
        (('knn', 'm', '--shots'), 2, '--shots'),
        (('info', 'm', '--img-size', 'big'), 2, "'big'"),
        (('fewshot', 'm', '-d', 'digits', '--shots', '5,many'), 2, '5,many'),
        (('knn', 'm', '-d', 'digits', '--split', 'train'), 2, 'train'),
        (('nope',), 2, 'nope'),
        (('list', '--json'), 0, 'tinyvit_5m_224.in1k'),
    ],
    ids=str,
)
def test_neither_help_nor_usage_errors_nor_list_load_torch(args, code, words, tmp_path):
    got, out, err, loaded = start(*args, cwd=tmp_path)
    assert (got, loaded) == (code, []), err
    assert words in (err if code else out)
    assert err.count('\n') == 0


@pytest.mark.parametrize('args', [('--help',), ('knn', '--help'), ('list', '--json')], ids=str)
def test_the_module_starts_as_light_as_the_console_script(args):
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'tinyvit_zoo.cli', *args], cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0, done.stderr
    assert 'tinyvit_zoo.cli.app' in imported
    assert imported.isdisjoint({'torch', 'timm', 'numpy', 'tinyvit_zoo.models'})


def test_the_package_registers_its_models_whatever_the_program_is_called():
    """Only `python -m tinyvit_zoo.cli` itself leaves that to the commands."""
    code = "import sys; sys.argv = ['-m']; import tinyvit_zoo, timm; print(timm.is_model('tinyvit_5m_224'))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == 'True\n', done.stderr


def test_completion_loads_no_torch_either():
    code, out, _, loaded = start(_TINYVIT_ZOO_COMPLETE='complete_bash', COMP_WORDS='tinyvit-zoo few', COMP_CWORD='1')
    assert (code, out.split(), loaded) == (0, ['fewshot'], [])


def test_a_command_runs_with_the_whole_package(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, timm, tinyvit_zoo\n'
        'print(tinyvit_zoo.__version__, timm.is_model("tinyvit_5m_224"), tinyvit_zoo is sys.modules["tinyvit_zoo"])\n'
    )
    code, out, err, loaded = start('run', str(script))
    assert 'tinyvit_zoo.models' in loaded
    assert (code, out) == (0, f'{tinyvit_zoo.__version__} True True\n'), err


def test_the_first_name_looked_up_in_the_package_runs_its_body():
    code = (
        'import sys, _tinyvit_zoo_cli as start\n'
        'start.defer_package()\n'
        'package = sys.modules["tinyvit_zoo"]\n'
        'import tinyvit_zoo.common.errors, tinyvit_zoo.version\n'
        'print("torch" in sys.modules, package.__version__, package.models.__name__)\n'
        'start.defer_package()\n'
        'import timm, tinyvit_zoo\n'
        'print(tinyvit_zoo is package, timm.is_model("tinyvit_5m_224"), hasattr(package, "nothing"))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    expected = f'False {tinyvit_zoo.__version__} tinyvit_zoo.models\nTrue True False\n'
    assert done.stdout == expected, done.stderr


# --- help


def commands(group=None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command with the words that call it."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, 'commands'):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def options_of(command) -> dict:
    return {option: p for p in command.params for option in p.opts if option.startswith('--') and option != '--help'}


def test_commands_are_shown_in_groups(cli):
    code, out, _ = cli('--help')
    assert code == 0
    places = [out.index(f'─ {panel} ─') for panel in PANELS]
    assert places == sorted(places)
    assert '─ Commands ─' not in out
    for name in get_command(app).commands:
        assert f'│ {name} ' in out


@pytest.mark.parametrize('path', COMMANDS, ids=' '.join)
def test_help_shows_every_option_with_its_text(cli, path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setenv('TERMINAL_WIDTH', '200')
    code, out, err = cli(*path, '--help')
    assert (code, err) == (0, '')
    text = ' '.join(out.replace('│', ' ').split())
    for parameter in COMMANDS[path].params:
        if getattr(parameter, 'hidden', False):
            continue
        assert parameter.help, f'{parameter.name} has no help'
        assert parameter.help.split()[0] in text
        assert parameter.opts[0] in text or parameter.opts[-1] in text or parameter.metavar in text


SPELLINGS = {
    '--size': '--img-size',
    '--checkpoint': '--weights',
    '--batch': '--step-batch',
    '--random-seed': '--random',
    '--pretrained': '--random',
    '--licence': '--license',
    '--out': '--output',
}


@pytest.mark.parametrize('path', COMMANDS, ids=' '.join)
def test_an_option_is_spelled_the_same_in_every_command(path):
    options = options_of(COMMANDS[path])
    sizes_of_models = {'--size'} if path[0] == 'pretrain' else set()
    assert not set(options) & set(SPELLINGS) - sizes_of_models
    if '--random' in options:
        assert '--seed' in options
    if '--output' in options:
        assert '-o' in options['--output'].opts
    if '--data' in options:
        assert '-d' in options['--data'].opts
    if '--img-size' in options:
        assert options['--img-size'].metavar == 'SIZE'
    for name in ('--shots', '--lrs', '--weight-decays', '--classes'):
        assert name not in options or (options[name].metavar == 'LIST' and not options[name].multiple)


@pytest.mark.parametrize(
    ('text', 'words'),
    [('0', "'0'"), ('x', "'x'"), ('3x', "'3x'"), ('2x3x4', "'2x3x4'"), ('-3', "'-3'"), ('9999', '8192')],
)
def test_a_size_that_is_none_is_a_usage_error(cli, text, words):
    code, out, err = cli('info', 'tinyvit_5m_224', f'--img-size={text}')
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert words in err
    assert '--img-size' in err
