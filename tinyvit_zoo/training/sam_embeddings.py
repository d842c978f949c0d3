"""A SAM encoder's outputs on disk: what a smaller encoder learns from, without the large one in memory.

A folder has `embeddings.json` and files `00000.safetensors`, `00001.safetensors`, ... each with one tensor 'embeddings'
(n, C, h, w) of so many images in a row, in the order of the data set.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..common.errors import EvaluationError
from ..common.files import new_file, write_whole
from ..common.hashes import json_hash
from ..common.processes import Processes
from ..common.text import reason
from ..data.image_dataset import ImageDataset
from ..data.sam_images import pixels_of
from .feature_teacher import FeatureTeacher
from .run_state import alone_in

__all__ = ['StoredEmbeddings', 'save_embeddings']

FACTS, TENSOR = 'embeddings.json', 'embeddings'
DTYPES = dict(float16=torch.float16, float32=torch.float32)
PER_FILE = 64


@dataclass(frozen=True)
class EmbeddingFacts:
    """What is stored.

    Attributes:
        images: How many.
        data: Fingerprint of the data set.
        name: Of the teacher.
        sha256: Of its weights.
        img_size: (H, W) of its images.
        channels: Of a map.
        grid: (h, w) of a map.
        dtype: 'float16' or 'float32'.
        per_file: Maps in a file; the last one may have fewer.
    """

    images: int
    data: str
    name: str
    sha256: str
    img_size: tuple[int, int]
    channels: int
    grid: tuple[int, int]
    dtype: str
    per_file: int

    @property
    def files(self) -> int:
        return -(-self.images // self.per_file)

    def positions(self, number: int) -> range:
        """Of the images in a file."""
        return range(number * self.per_file, min((number + 1) * self.per_file, self.images))


def save_embeddings(
    teacher: FeatureTeacher,
    dataset: ImageDataset,
    folder: str | Path,
    *,
    dtype: str = 'float16',
    per_file: int = PER_FILE,
    device: torch.device | None = None,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> 'StoredEmbeddings':
    """Write the maps of all images, each resized and padded as SAM does it. The same call again resumes.

    Every image is computed by itself, so the files have the same bytes for any number of processes and interruptions on
    one kind of machine, with as many threads. Processes started by `torchrun` or `accelerate launch` take whole files.
    A map of 256 channels at 64x64 takes 2.1 MB in float16.

    Args:
        teacher: Such as `load_feature_teacher(FOLDER)` of a SAM of transformers; moved to `device`.
        dataset: Its labels are not used.
        folder: Made if it is missing.
        dtype: 'float16', or 'float32' for what the teacher gives to the bit.
        per_file: Maps in a file.
        device: None: CUDA where there is one. Plain 'cuda' is another GPU for each process of a machine.
        workers: Processes that read images; 0 to read in this one.
        say: Prints a line.

    Returns:
        The maps, on every process.

    Raises:
        EvaluationError: If the folder holds other embeddings or cannot be written to, or an image cannot be read.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise EvaluationError(f"'{dtype}' is not a dtype for embeddings: choose from {', '.join(DTYPES)}.")
    processes = Processes()
    device = processes.own_device(device or ('cuda' if torch.cuda.is_available() else 'cpu'), teacher.model)
    teacher.model.to(device)
    blank = _map(teacher, torch.zeros(1, 3, *teacher.input.size, device=device))
    facts = EmbeddingFacts(
        len(dataset), dataset.fingerprint(), teacher.name, teacher.sha256, teacher.input.size, blank.shape[1],
        (blank.shape[2], blank.shape[3]), dtype, per_file,
    )  # fmt: skip
    with ExitStack() as stack:
        missing = processes.from_first(lambda: _begin(stack, folder, facts))
        mine = missing[processes.rank :: processes.number]
        images = iter(_loaded(dataset, teacher.input.size, [i for n in mine for i in facts.positions(n)], workers))
        for number in mine:
            places = facts.positions(number)
            title = f'file {number + 1}/{facts.files}'
            bar = tqdm(places, desc=title, unit='image', leave=False, disable=None if processes.rank == 0 else True)
            maps = [_map(teacher, next(images).to(device)) for _ in bar]
            _write(torch.cat(maps).cpu().to(DTYPES[dtype]), _file(folder, number))
            say(f'Images {places.start + 1} to {places.stop} of {len(dataset)} are embedded in {folder}.')
        processes.wait()
    return StoredEmbeddings(folder)


def _loaded(dataset: ImageDataset, size: tuple[int, int], order: list[int], workers: int) -> DataLoader:
    """Images (1, 3, H, W) in this order of positions."""
    generator = torch.Generator().manual_seed(0)  # leaves the global generator alone
    return DataLoader(_Pixels(dataset, size), None, sampler=order, num_workers=workers, generator=generator)


class _Pixels(Dataset):
    def __init__(self, dataset: ImageDataset, size: tuple[int, int]) -> None:
        self.dataset, self.size = dataset, size

    def __getitem__(self, position: int) -> torch.Tensor:
        return pixels_of(self.dataset.image(position), self.size)


def _map(teacher: FeatureTeacher, images: torch.Tensor) -> torch.Tensor:
    dense = teacher.features(images).dense
    assert dense is not None
    return dense


def _begin(stack: ExitStack, folder: Path, facts: EmbeddingFacts) -> list[int]:
    """Keep other runs out of the folder until the stack ends, and write the facts or see that they are those of the
    folder; the numbers of the files that it lacks.
    """
    stack.enter_context(alone_in(folder, 'folder'))
    if (folder / FACTS).exists():
        found = _facts(folder)
        other = [name for name, value in asdict(facts).items() if asdict(found)[name] != value and name != 'name']
        if other:
            raise EvaluationError(
                f'{folder} holds other embeddings, which differ in {", ".join(other)}: choose another folder.'
            )
    else:
        write_whole(folder / FACTS, (json.dumps(asdict(facts), indent=2) + '\n').encode())
    return _missing(folder, facts)


def _missing(folder: Path, facts: EmbeddingFacts) -> list[int]:
    return [number for number in range(facts.files) if not _file(folder, number).exists()]


def _facts(folder: Path) -> EmbeddingFacts:
    try:
        values = json.loads((folder / FACTS).read_text())
        values.update(img_size=tuple(values['img_size']), grid=tuple(values['grid']))
        return EmbeddingFacts(**values)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise EvaluationError(
            f'{folder} holds no embeddings of a SAM encoder ({reason(e)}): write them with sam embed.'
        ) from e


def _file(folder: Path, number: int) -> Path:
    return folder / f'{number:05d}.safetensors'


def _write(maps: torch.Tensor, path: Path) -> None:
    try:
        with new_file(path) as new:
            new.write_bytes(save({TENSOR: maps.contiguous()}, metadata={'format': 'pt'}))
    except OSError as e:
        raise EvaluationError(
            f'{path} cannot be written ({e.strerror or e}): make room and give the same command again, which resumes.'
        ) from e


class StoredEmbeddings:
    """The maps in a folder, by position in the data set.

    Args:
        folder: That `save_embeddings` wrote.

    Raises:
        EvaluationError: If it holds none, or not all of them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.facts = _facts(self.folder)
        missing = _missing(self.folder, self.facts)
        if missing:
            raise EvaluationError(
                f'{self.folder} lacks {_file(self.folder, missing[0]).name}, so not all embeddings are there: let '
                'sam embed write the rest.'
            )
        self._open: dict[int, Any] = {}

    @property
    def described(self) -> dict[str, Any]:
        """The facts of its teacher, as `results.json` has them."""
        facts = self.facts
        return dict(
            name=facts.name, sha256=facts.sha256, img_size=list(facts.img_size), channels=facts.channels,
            grid=list(facts.grid), stored=facts.dtype,
        )  # fmt: skip

    @property
    def hash(self) -> str:
        """Of everything but the teacher's name."""
        return json_hash(asdict(self.facts) | dict(name=''))

    def __getstate__(self) -> Mapping[str, Any]:
        return dict(vars(self), _open={})  # each worker opens the files that it reads

    def __getitem__(self, position: int) -> torch.Tensor:
        """The map of an image, float32 (C, h, w).

        Raises:
            EvaluationError: If its file is damaged.
        """
        number, row = divmod(position, self.facts.per_file)
        try:
            if number not in self._open:
                self._open[number] = safe_open(_file(self.folder, number), framework='pt').get_slice(TENSOR)
            found = self._open[number][row].float()
        except Exception as e:  # safetensors has an error of its own, and slices raise others
            raise EvaluationError(
                f'{_file(self.folder, number)} is damaged ({reason(e)}): remove it and let sam embed write it again.'
            ) from e
        if tuple(found.shape) != (self.facts.channels, *self.facts.grid):
            raise EvaluationError(f'{_file(self.folder, number)} has maps of another shape than {FACTS} says.')
        return found
