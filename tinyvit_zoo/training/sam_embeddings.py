"""A SAM encoder's outputs on disk: what a smaller encoder learns from, without the large one in memory.

A folder has `embeddings.json` and files `00000.safetensors`, `00001.safetensors`, ... each with one tensor 'embeddings'
(n, C, h, w) of so many images in a row, in the order of the data set.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from ..common.errors import EvaluationError
from ..common.files import new_file, write_whole
from ..common.hashes import json_hash
from ..common.text import count_of, reason
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


def save_embeddings(
    teacher: FeatureTeacher,
    dataset: ImageDataset,
    folder: str | Path,
    *,
    dtype: str = 'float16',
    per_file: int = PER_FILE,
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
) -> 'StoredEmbeddings':
    """Write the maps of all images, each resized and padded as SAM does it. The same call again resumes.

    A map of 256 channels at 64x64 takes 2.1 MB in float16.

    Args:
        teacher: Such as `load_feature_teacher(FOLDER)` of a SAM of transformers; moved to `device`.
        dataset: Its labels are not used.
        folder: Made if it is missing.
        dtype: 'float16', or 'float32' for what the teacher gives to the bit.
        per_file: Maps in a file.
        device: None: CUDA where there is one.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder holds other embeddings or cannot be written to, or an image cannot be read.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise EvaluationError(f"'{dtype}' is not a dtype for embeddings: choose from {', '.join(DTYPES)}.")
    device = device or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    teacher.model.to(device)
    blank = _map(teacher, torch.zeros(1, 3, *teacher.input.size, device=device))
    facts = EmbeddingFacts(
        len(dataset), dataset.fingerprint(), teacher.name, teacher.sha256, teacher.input.size, blank.shape[1],
        (blank.shape[2], blank.shape[3]), dtype, per_file,
    )  # fmt: skip
    with alone_in(folder, 'folder'):
        _begin(folder, facts)
        files = -(-len(dataset) // per_file)
        for number in range(files):
            path = _file(folder, number)
            if path.exists():
                continue
            positions = range(number * per_file, min((number + 1) * per_file, len(dataset)))
            bar = tqdm(positions, desc=f'file {number + 1}/{files}', unit='image', leave=False)
            maps = [_map(teacher, pixels_of(dataset.image(i), teacher.input.size).to(device)) for i in bar]
            _write(torch.cat(maps).cpu().to(DTYPES[dtype]), path)
            say(f'Embedded in {folder}: {positions.stop} of {count_of(len(dataset), "image")}.')
    return StoredEmbeddings(folder)


def _map(teacher: FeatureTeacher, images: torch.Tensor) -> torch.Tensor:
    dense = teacher.features(images).dense
    assert dense is not None
    return dense


def _begin(folder: Path, facts: EmbeddingFacts) -> None:
    """Write the facts, or see that they are those of the folder."""
    if (folder / FACTS).exists():
        found = _facts(folder)
        other = [name for name, value in asdict(facts).items() if asdict(found)[name] != value and name != 'name']
        if other:
            raise EvaluationError(
                f'{folder} holds other embeddings, which differ in {", ".join(other)}: choose another folder.'
            )
        return
    write_whole(folder / FACTS, (json.dumps(asdict(facts), indent=2) + '\n').encode())


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
        missing = [i for i in range(-(-self.facts.images // self.facts.per_file)) if not _file(self.folder, i).exists()]
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
