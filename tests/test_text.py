"""Words of messages."""

import pytest

from tinyvit_zoo.common.text import as_sentence, count_of, reason
from tinyvit_zoo.soft_labels.store import in_words
from tinyvit_zoo.training.layer_reserve import LayerReserve


@pytest.mark.parametrize(
    ('number', 'noun', 'words'),
    [
        (1, 'epoch', '1 epoch'),
        (0, 'image', '0 images'),
        (2000, 'held-out image', '2,000 held-out images'),
        (2, 'class', '2 classes'),
        (2, 'batch', '2 batches'),
        (2, 'query', '2 queries'),
        (2, 'key', '2 keys'),
        (1.0, 'epoch', '1 epoch'),
        (0.25, 'epoch', '0.25 epochs'),
    ],
)
def test_a_number_has_its_noun_in_the_right_form(number, noun, words) -> None:
    assert count_of(number, noun) == words


def test_one_epoch_or_block_is_not_several() -> None:
    assert [in_words(numbers) for numbers in ([3], [0, 1, 2, 7], [])] == ['epoch 3', 'epochs 0 to 2, 7', 'no epoch']
    assert LayerReserve(keep=1).words(6).startswith('the first of 6 blocks stays; ')


def test_the_reason_of_an_error_of_the_system_is_its_words_alone(tmp_path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError) as there:
        (tmp_path / 'file').mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / 'missing').read_text()
    assert [reason(error.value) for error in (there, missing)] == ['it is a file', 'No such file or directory']
    assert reason(FileExistsError('run holds other files')) == 'run holds other files'
    assert reason(OSError()) == 'OSError'


def test_an_error_of_the_system_becomes_a_sentence_with_its_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / 'missing').read_text()
    sentence = f'{tmp_path}/missing cannot be read or written (No such file or directory).'
    assert as_sentence(missing.value) == sentence
    assert as_sentence(OSError('run holds other files')) == 'run holds other files'
