"""README and docs: every table is rendered, every Python block runs, every command, file and link shown exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from typer.main import get_command

from tinyvit_zoo.cli.app import app
from tinyvit_zoo.hub import configs as pages
from tinyvit_zoo.hub import figure
from tinyvit_zoo.info import profile_model
from tinyvit_zoo.releases import FAMILIES, FAMILY_TITLES, TEACHERS, find_release, list_releases, markdown_table
from tinyvit_zoo.releases.rivals import RIVALS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), *sorted((ROOT / 'docs' / 'use').glob('*.md'))]
PAGES += [ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']  # pages of the site too
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
README, MODELS = TEXTS['README.md'], TEXTS['docs/models.md']


def fenced(language: str) -> list:
    """Every block of a language, as a parameter named after its page. Pages of docs/use run as a whole, in
    test_use_pages.py."""
    found = []
    for name, text in TEXTS.items():
        if name.startswith('docs/use/'):
            continue
        blocks = re.findall(rf'^```{language}\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
        found += [pytest.param(block, id=f'{name}-{i}') for i, block in enumerate(blocks)]
    return found


def test_every_block_is_of_a_language_that_is_tested():
    languages = {language for text in TEXTS.values() for language in re.findall(r'^```(\S*)\n', text, re.MULTILINE)}
    assert languages <= {'python', 'sh', '', '{toctree}', '{include}'}
    assert len(fenced('python')) >= 9
    assert len(fenced('sh')) >= 12


# --- Python


@pytest.mark.slow
@pytest.mark.parametrize('block', fenced('python'))
def test_python_blocks_run_as_printed(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write folders
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save('photo.jpg')
    # Weights cannot be fetched in tests, only read from a file of the block's own; loading is tested on loopback.
    if 'file=' not in block:
        block = block.replace('pretrained=True', 'pretrained=False')
    names = {}
    exec(compile(block, 'docs', 'exec'), names)
    assert names.keys() > {'__builtins__'}


def test_weights_loaded_by_hand_are_imported_before():
    text = TEXTS['docs/plain_vits.md']
    loaded = re.findall(r"^\w+ = timm.create_model\('([^']+)', pretrained=True", text, re.MULTILINE)
    by_hand = [release for release in map(find_release, loaded) if release and release.manual_download]
    assert by_hand
    for release in by_hand:
        assert f'tinyvit-zoo import {release.file} --name {release.name}' in text


# --- shell


def command_lines() -> list:
    """Every command line of `tinyvit-zoo`: those of shell blocks, and those in backquotes that name a command."""
    lines = {}
    for name, text in TEXTS.items():
        for block in re.findall(r'^```sh\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
            for line in block.replace('\\\n', ' ').splitlines():
                if line.startswith('tinyvit-zoo '):
                    lines[line] = name
        prose = re.sub(r'^```.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)
        for quoted in re.findall(r'`(tinyvit-zoo\s[^`]+)`', prose):
            lines[' '.join(quoted.split())] = name
    return [pytest.param(line, id=f'{name}: {line}') for line, name in lines.items()]


@pytest.mark.parametrize('line', command_lines())
def test_commands_and_their_options_exist(line):
    command, words = get_command(app), shlex.split(line, comments=True)[1:]
    assert words
    if words[0].startswith('--'):
        assert words[0] in {'--help', *(option for p in command.params for option in p.opts)}
        return
    while hasattr(command, 'commands') and words and not words[0].startswith('-'):
        name = words.pop(0)
        if name.isupper():  # a placeholder of prose
            return
        if '|' in name:  # several of a group
            assert set(name.split('|')) <= set(command.commands)
            return
        assert name in command.commands, f'no command {name}'
        command = command.commands[name]
    if command.name == 'run':
        return  # everything after the script is the script's own
    options = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts) if option.startswith('-')}
    arguments, i = 0, 0
    while i < len(words):
        if words[i].startswith('-'):
            assert words[i] in options or words[i] == '--help', f'{command.name} has no {words[i]}'
            takes_value = words[i] in options and not getattr(options[words[i]], 'is_flag', False)
            i += options[words[i]].nargs if takes_value else 0
        else:
            arguments += 1
        i += 1
    assert i == len(words), 'the last option lacks its value'
    known = [p for p in command.params if not any(option.startswith('-') for option in p.opts)]
    assert arguments <= sum(p.nargs for p in known) or any(p.nargs < 0 for p in known), 'too many arguments'


def other_lines() -> list[str]:
    """Every line of shell blocks that is for another program."""
    blocks = [
        block for text in TEXTS.values() for block in re.findall(r'^```sh\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    ]
    lines = {line for block in blocks for line in block.replace('\\\n', ' ').splitlines()}
    return sorted(line for line in lines if shlex.split(line, comments=True)[:1] not in ([], ['tinyvit-zoo']))


@pytest.mark.parametrize('line', other_lines())
def test_other_lines_of_shell_blocks_name_what_exists(line):
    words = shlex.split(line, comments=True)
    if words[0] == 'make':
        targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
        assert words[1] in targets
    elif words[0] == 'pip':
        extras = set(tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'])
        assert words[1:3] in (['install', '.'], ['install', words[2]])
        assert set(re.findall(r'[\w-]+', ''.join(re.findall(r'\[(.*)\]', words[2])))) <= extras
    elif words[0] == 'python':
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == 'torchrun', f'not tested: {line}'
        assert 'tinyvit_zoo.cli' in words


def test_no_two_measurements_of_a_block_go_to_the_same_folder():
    """`reproduce` would refuse the second, `analyze` lose the first."""
    blocks = [b for text in TEXTS.values() for b in re.findall(r'^```sh\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)]
    written = {}
    for i, block in enumerate(blocks):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[1:2] in (['reproduce'], ['analyze']) and '-o' in words:
                folder, what = words[words.index('-o') + 1], words[1:3]
                assert written.setdefault((i, folder), what) == what, line
    assert len(written) >= 10


def test_files_and_extras_named_in_prose_exist():
    extras = set(tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'])
    for name, text in TEXTS.items():
        for extra in re.findall(r'tinyvit-zoo\[([\w,-]+)\]', text):
            assert set(extra.split(',')) <= extras, name
        for path in re.findall(r'`((?:benchmarks|tests|docs|downstream|tinyvit_zoo|hub_configs)/[\w./]*)`', text):
            assert (ROOT / path).exists(), f'{name} names {path}'
        for path in re.findall(r'`python ([\w/]+\.py)', text):
            assert (ROOT / path).is_file(), f'{name} names {path}'
        for extra in re.findall(r'pip\s+install\s+\'\.\[([\w,-]+)\]', text):
            assert set(extra.split(',')) <= extras, name
        # The package is not on PyPI yet: pages install it from a clone, or the command fails.
        assert not re.search(r"pip\s+install\s+'?tinyvit-zoo\b(?!`? of cards)", text), name
    listed = re.findall(r'^\| `([\w-]+)` \|', TEXTS['docs/installation.md'], re.MULTILINE)
    assert set(listed) == extras


def test_every_command_is_on_the_page_of_the_command_line():
    rows = re.findall(r'^\| (`.*?) \|', TEXTS['docs/command_line.md'], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r'`([\w-]+)`', row)]
    assert sorted(listed) == sorted(get_command(app).commands)


# --- links


def anchors(text: str) -> set[str]:
    """As GitHub and MyST make them of headings."""
    text = re.sub(r'^```.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_links_within_the_repository_resolve():
    pattern = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')
    links = [(name, ''.join(groups)) for name, text in TEXTS.items() for groups in pattern.findall(text)]
    links = [(name, link) for name, link in links if not link.startswith('http')]
    assert len(links) > 20
    for name, link in links:
        path, _, anchor = link.partition('#')
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f'{name}: {link}'
        if anchor:
            assert anchor in anchors(target.read_text()), f'{name}: {link}'


# --- figures and tables


def test_the_readme_is_short_enough_to_read():
    assert len(README.splitlines()) <= 220


def test_the_table_of_models_is_rendered_from_the_releases():
    table = re.search(r'^\| model\.tag.*?(?=\n\n)', MODELS, re.DOTALL | re.MULTILINE)[0]
    assert table == markdown_table(list_releases()), 'paste the output of `tinyvit-zoo list --markdown`'


def test_the_families_of_the_readme_are_those_of_the_releases():
    rows = re.findall(
        r'^\| \[([\w-]+)\]\((\S+)\) \((.*?)\) \| (\d+) \| ([\d.-]+) \| ([\d.-]+) \|', README, re.MULTILINE
    )
    expected, released = [], list_releases()
    for family, releases in FAMILIES.items():
        if family in TEACHERS:  # named in the table of docs/models.md
            continue
        own = [row for row in released if row['family'] == family]
        params, top1 = [row['params'] / 1e6 for row in own], [row['top1'] for row in own if row['top1']]
        ranges = (f'{min(params):.1f}-{max(params):.1f}', f'{min(top1):.1f}-{max(top1):.1f}')
        paper = releases[0].paper
        expected.append((FAMILY_TITLES[family], paper.url, paper.venue, str(len(own)), *ranges))
    assert rows == expected


def test_the_committed_figure_shows_what_the_releases_say():
    assert not pages.figure_drifted(), 'run: tinyvit-zoo cards build'


def test_the_figure_shows_every_published_top1_but_teachers_with_the_one_who_measured_it():
    shown = {p.name: p for p in figure.points()}
    for row in list_releases():
        assert (row['name'] in shown) == (row['top1'] is not None and row['family'] not in TEACHERS)
        if row['name'] in shown:
            result = find_release(row['name']).protocol.result()
            point = shown[row['name']]
            assert (point.top1, point.by, point.gmacs) == (result.top1, result.by, row['gmacs'])
    assert set(figure.LABELS) <= set(shown)
    assert {p.series for p in shown.values()} == set(figure.MARKS)


def test_a_figure_is_the_same_bytes_again_and_any_other_number_is_drift(tmp_path, monkeypatch):
    (tmp_path / 'docs').mkdir()
    monkeypatch.setattr(pages, 'configs_folder', lambda: tmp_path / 'hub_configs')
    points = figure.points()
    monkeypatch.setattr(figure, 'points', lambda: points)
    assert pages.figure_drifted()  # there is none
    path = pages.build_figure()
    assert not pages.figure_drifted()
    drawn = path.read_bytes()
    pages.build_figure()
    assert path.read_bytes() == drawn
    path.write_bytes(drawn.replace(b'77.978 %', b'78.978 %'))
    assert pages.figure_drifted()


def test_an_installation_without_documentation_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, 'configs_folder', lambda: tmp_path / 'hub_configs')
    assert pages.build_figure() is None
    assert not pages.figure_drifted()


def test_without_matplotlib_the_figure_says_what_is_missing(cli, tmp_path, monkeypatch):
    (tmp_path / 'docs').mkdir()
    monkeypatch.setattr(pages, 'configs_folder', lambda: tmp_path / 'hub_configs')
    monkeypatch.setattr(pages, 'build_configs', list)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    code, _, err = cli('cards', 'build')
    assert (code, err.strip()) == (1, "The figure needs matplotlib: pip install 'tinyvit-zoo[eval]'.")


@pytest.mark.parametrize('rival', [pytest.param(r, marks=pytest.mark.slow) for r in RIVALS[1:]] + [RIVALS[0]], ids=str)
def test_the_cost_of_rivals_is_that_of_the_models(rival):
    model = timm.create_model(rival.architecture, device='meta').eval()
    if hasattr(model, 'set_input_size'):
        model.set_input_size(img_size=rival.img_size)
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, rival.img_size, rival.img_size)}
    profile = profile_model(model)
    assert profile.macs / 1e9 == pytest.approx(rival.gmacs, abs=5.1e-4)
    assert (profile.params, profile.bytes) == (rival.params, rival.bytes)
    assert timm.get_pretrained_cfg(rival.name).license == rival.license


def test_every_detection_config_has_its_row():
    text = TEXTS['docs/detection.md']
    configs = [
        *(ROOT / 'downstream').glob('detection/configs/*.py'),
        *(ROOT / 'downstream').glob('segmentation/configs/*.py'),
    ]
    rows = re.findall(r'^\| `([\w-]+_(?:coco|ade20k))` \|', text, re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in configs)


def test_thumbnails_are_small_and_used():
    images = {path.name for path in (ROOT / 'docs' / 'images').iterdir()}
    used = {name for text in TEXTS.values() for name in re.findall(r'images/(\w+\.\w+)', text)}
    assert used == images
    for path in (ROOT / 'docs' / 'images').glob('*.png'):
        # Those of the gallery and of the browser are of the width of a page; test_reproduce_pages.py has their limit.
        assert path.stat().st_size < (300_000 if path.name.startswith(('gallery_', 'browser')) else 40_000), path.name


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', '-d', tmp_path / 'trees']
    done = subprocess.run([*command, 'docs', tmp_path / 'site'], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'site' / 'api' / 'generated' / 'tinyvit_zoo.downstream.knn.html').is_file()
