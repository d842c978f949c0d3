"""The README shows what the package does: its table is rendered, its examples run."""

import re
from pathlib import Path

import pytest

from tinyvit_zoo.info import list_releases, markdown_table
from tinyvit_zoo.releases import find_release

README = (Path(__file__).parent.parent / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)


def test_models_table_is_rendered_from_the_releases():
    table = '\n'.join(re.search(r'^\| model\.tag.*?(?=\n\n)', README, re.S | re.M)[0].splitlines())
    assert table == markdown_table(list_releases()), 'paste the output of `tinyvit-zoo list --markdown`'


@pytest.mark.parametrize('block', BLOCKS, ids=[f'block{i}' for i in range(len(BLOCKS))])
def test_python_examples_run_as_printed(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write folders
    # The weights themselves cannot be fetched in tests; loading them is tested on loopback.
    exec(compile(block.replace('pretrained=True', 'pretrained=False'), 'README.md', 'exec'), {})


def test_every_command_shown_exists():
    from typer.main import get_command

    from tinyvit_zoo.cli.app import app

    shown = set(re.findall(r'^tinyvit-zoo (\w+)', README, re.M))
    assert shown
    assert shown <= set(get_command(app).commands)


def test_what_an_example_loads_by_hand_is_imported_before():
    loaded = re.findall(r"^\w+ = timm.create_model\('([^']+)', pretrained=True", README, re.M)
    by_hand = [release for release in map(find_release, loaded) if release and release.manual_download]
    assert by_hand
    for release in by_hand:
        assert f'tinyvit-zoo import {release.file} --name {release.name}' in README
