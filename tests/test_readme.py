"""The README shows what the package does: its table is rendered, its examples run."""

import re
from pathlib import Path

import pytest

from tinyvit_zoo.info import list_releases, markdown_table

README = (Path(__file__).parent.parent / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)


def test_models_table_is_rendered_from_the_releases():
    table = '\n'.join(re.search(r'^\| model\.tag.*?(?=\n\n)', README, re.S | re.M)[0].splitlines())
    assert table == markdown_table(list_releases()), 'paste the output of `tinyvit-zoo list --markdown`'


@pytest.mark.parametrize('block', BLOCKS, ids=[f'block{i}' for i in range(len(BLOCKS))])
def test_python_examples_run_as_printed(block, capsys):
    # The weights themselves cannot be fetched in tests; loading them is tested on loopback.
    exec(compile(block.replace('pretrained=True', 'pretrained=False'), 'README.md', 'exec'), {})


def test_every_command_shown_exists():
    from typer.main import get_command

    from tinyvit_zoo.cli.app import app

    shown = set(re.findall(r'^tinyvit-zoo (\w+)', README, re.M))
    assert shown
    assert shown <= set(get_command(app).commands)
