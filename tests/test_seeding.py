"""Seeds: each derivation keeps its numbers, a block leaves the generators as they were, images depend on their draw."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tinyvit_zoo.common.seeding import Seeds, generator_states, same_states, seed_generators, seeded
from tinyvit_zoo.data.seeded import Draw, SeededDataset


def three():
    return random.random(), np.random.rand(), torch.rand((), dtype=torch.float64).item()


@pytest.mark.parametrize(
    ('seeds', 'expected'),
    [
        (Seeds.hashed(3, 17, 2), (0.6747254522877756, 0.32378320211206535, 0.651027427416129)),
        (Seeds.same(4000000000), (0.4094698329002763, 0.8765553184532914, 0.18529334503042816)),
        (Seeds.spawned(5, 1, 0, 12), (0.16749560093548577, 0.2669670260972308, 0.27876042518307087)),
    ],
)
def test_derivations_keep_their_numbers(seeds, expected):
    """Features in caches and runs on disk depend on them."""
    with seeded(seeds):
        assert three() == expected


def test_random_numbers_of_a_block_are_its_own_and_the_generators_are_as_before():
    before = generator_states()
    with seeded(Seeds.hashed(0, 1)):
        inside = three()
        assert not same_states(before, generator_states())
    with seeded(Seeds.hashed(0, 1)):
        assert three() == inside
    with seeded(Seeds.hashed(0, 2)):
        assert three() != inside
    with pytest.raises(KeyError), seeded(Seeds.same(1)):
        raise KeyError
    assert same_states(generator_states(), before)


def test_one_generator_that_moved_is_seen():
    before = generator_states()
    for draw in (random.random, np.random.rand, lambda: torch.rand(())):
        draw()
        after = generator_states()
        assert not same_states(before, after)
        before = after


def test_seeding_without_a_block_stays():
    with seeded(Seeds.same(0)):
        seed_generators(Seeds.same(7), device=True)
        numbers = three()
        seed_generators(Seeds.same(7))
        assert three() == numbers


class Noisy(Dataset):
    """A position and one number of each generator."""

    name = 'noisy'

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([index, *three()], dtype=torch.float64)

    def __getitems__(self, indices):  # of torch's own subsets: all images of a batch at once
        raise AssertionError('past the seeds')


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_depends_on_its_draw_alone(workers):
    dataset = SeededDataset(Noisy())
    draws = [Draw(i % 20, Seeds.spawned(3, i)) for i in range(40)]
    expected = {draw: dataset[draw] for draw in reversed(draws)}
    assert len({tuple(row.tolist()) for row in expected.values()}) == 40
    loader = DataLoader(dataset, batch_size=5, sampler=draws, num_workers=workers)
    assert torch.equal(torch.cat(list(loader)), torch.stack([expected[draw] for draw in draws]))


def test_a_seeded_data_set_has_the_attributes_of_its_own_and_travels_to_workers():
    dataset = pickle.loads(pickle.dumps(SeededDataset(Noisy())))
    assert (dataset.name, len(dataset)) == ('noisy', 20)
    with pytest.raises(AttributeError, match='missing'):
        _ = dataset.missing
