"""The pages of the documentation that scripts write: tables of the papers, and the gallery."""

import pytest
from conftest import imported_benchmark
from PIL import Image

from tinyvit_zoo.downstream.reproduce.measure import measure
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers

MOST_BYTES = 1_500_000


@pytest.fixture(scope='module')
def tables():
    with imported_benchmark('make_tables', 'docs') as module:
        yield module


@pytest.fixture(scope='module')
def gallery():
    with imported_benchmark('make_gallery', 'docs') as module:
        yield module


# --- tables


def test_pages_of_the_papers_are_what_the_numbers_say(tables):
    pages = tables.pages(tables.read_counts())  # `python docs/make_tables.py --keep` writes them
    assert {name: (tables.PAGES / name).read_text(encoding='utf-8') for name in pages} == pages


def test_every_number_stands_on_its_page(tables):
    texts = {name: text.split('\n## ') for name, text in tables.pages(tables.read_counts()).items()}
    sections = {part.partition(': ')[0]: part for parts in texts.values() for part in parts}
    missing = [
        number.id
        for number in read_numbers()
        if f'\n| {number.row}/{number.cell} | {number.value} |' not in sections[number.entry]
    ]
    assert missing == []


def test_kept_counts_are_those_of_todays_models(tables):
    kept = tables.read_counts()
    assert {i: key for i, (key, _) in kept.items()} == {i: tables.hash_of(m) for i, m in tables.planned().items()}


def test_a_kept_count_of_something_else_is_made_again(tables, monkeypatch):
    kept = tables.read_counts()
    i = 'tinyvit/table4/tinyvit-5m-in-1k-scratch/params_m'
    made = []
    monkeypatch.setattr(tables, 'measure', lambda measurement: made.append(measurement) or 1.5)
    counts = tables.count(kept | {i: ('0' * 12, 7.0)})
    assert made == [tables.planned()[i]]
    assert counts == kept | {i: (kept[i][0], 1.5)}


@pytest.mark.slow
def test_counting_again_gives_what_is_kept(tables):
    kept = tables.read_counts()
    assert {i: measure(m) for i, m in tables.planned().items()} == {i: value for i, (_, value) in kept.items()}


# --- gallery


def test_the_page_of_the_gallery_has_the_commands_that_made_it(gallery):
    text = (gallery.DOCS / 'gallery.md').read_text(encoding='utf-8')
    assert text == gallery.page()  # `make gallery` writes it
    for shown in gallery.GALLERY:
        assert f'({shown.file.relative_to(gallery.DOCS)})\n\n*{shown.data.capitalize()}, not the figure' in text


def test_images_of_the_gallery_exist_and_are_small(gallery):
    files = {shown.file for shown in gallery.GALLERY}
    assert files == set((gallery.DOCS / 'images').glob('gallery_*.png'))
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


def test_every_image_comes_from_a_command(gallery):
    outputs = set()
    for command in (*gallery.TRAINING, *(c for shown in gallery.GALLERY for c in shown.commands)):
        words = command.split()
        assert words[0] == 'tinyvit-zoo'
        if '-d' in words:
            assert words[words.index('-d') + 1] in ('digits', 'textures')
        outputs.add(words[words.index('-o') + 1])
    for shown in gallery.GALLERY:
        assert {panel.partition('/')[0] for panel in shown.panels} <= outputs | {'kept.png'}


def test_panels_are_joined_and_labelled(gallery):
    wide, high = Image.new('RGB', (200, 100)), Image.new('RGB', (100, 200))
    assert gallery.joined([wide, high], across=True).size == (200 + 50 + gallery.GAP, 100)
    assert gallery.joined([wide, high], across=False).size == (100, 50 + 200 + gallery.GAP)
    image = gallery.labelled(wide, 'digits')
    assert image.size == (200, 100 + gallery.BAND)
    assert len(image.crop((0, 100, 200, 100 + gallery.BAND)).getcolors()) > 2  # something is written there
