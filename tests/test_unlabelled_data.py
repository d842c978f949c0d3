"""Images for a training without labels: any folder, and data sets by name."""

import pytest
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.unlabelled import load_unlabelled


@pytest.fixture
def photos(tmp_path):
    """Writes photographs at these places below a folder."""
    digits = load_dataset('digits', 'train')

    def write(*places: str):
        for i, place in enumerate(places):
            path = tmp_path / 'photos' / place
            path.parent.mkdir(parents=True, exist_ok=True)
            digits.image(i).save(path)
        return tmp_path / 'photos'

    return write


def names(dataset) -> list[str]:
    return [dataset.describe(i).rpartition('photos/')[2] for i in range(len(dataset))]


@pytest.mark.parametrize(
    ('there', 'taken', 'split'),
    [
        (['b.png', 'a.png'], ['a.png', 'b.png'], 'all'),
        (['a.png', 'more/deep/b.png'], ['a.png', 'more/deep/b.png'], 'all'),
        (['cat/a.png', 'dog/b.png'], ['cat/a.png', 'dog/b.png'], 'all'),
        (['train/a.png', 'val/b.png'], ['train/a.png'], 'train'),
        (['train/cat/a.png', 'test/cat/b.png'], ['train/cat/a.png'], 'train'),
    ],
    ids=['flat', 'nested', 'class folders', 'flat splits', 'splits of class folders'],
)
def test_every_image_of_a_folder_is_taken_without_classes(there, taken, split, photos):
    folder = photos(*there)
    dataset = load_unlabelled(str(folder))
    assert names(dataset) == taken
    assert (dataset.name, dataset.split, dataset.classes) == (str(folder), split, ())
    assert set(dataset.labels) == {-1}
    assert names(load_unlabelled('folder', folder)) == taken


def test_a_data_set_by_name_gives_its_images_to_learn_from():
    assert len(load_unlabelled('digits')) == len(load_dataset('digits', 'train'))


def test_unreadable_images_are_left_out_on_request(photos):
    folder = photos('a.png', 'b.png')
    (folder / 'b.png').write_bytes(b'nothing')
    assert names(load_unlabelled(str(folder), skip_unreadable=True)) == ['a.png']
    (folder / 'a.png').write_bytes(b'nothing')
    refused(lambda: load_unlabelled(str(folder), skip_unreadable=True), 'no image', kind=EvaluationError)


def test_what_is_no_folder_of_images_is_one_sentence(photos, tmp_path):
    (tmp_path / 'empty').mkdir()
    refused(lambda: load_unlabelled(str(tmp_path / 'empty')), 'no images', kind=EvaluationError)
    refused(lambda: load_unlabelled('digts'), 'digits', kind=EvaluationError)
