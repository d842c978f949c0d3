"""One record of everything known about a released checkpoint."""

import re
from dataclasses import dataclass, field

from .profile import Profile, find_profile

__all__ = ['Golden', 'License', 'Paper', 'Protocol', 'Release', 'Result', 'Speed', 'Transfer', 'same_file']

# timm's IMAGENET_DEFAULT_MEAN and IMAGENET_DEFAULT_STD, written out: this room imports no package.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        arxiv_id: Such as '2207.10666'.
        authors: 'Given names Family name' of each, in order.
        venue: Conference and year.
    """

    title: str
    arxiv_id: str
    authors: tuple[str, ...]
    venue: str

    @property
    def url(self) -> str:
        return f'https://arxiv.org/abs/{self.arxiv_id}'

    @property
    def bibtex(self) -> str:
        """Entry of the version on arXiv, with the year of its first submission, which its id holds."""
        year = f'20{self.arxiv_id[:2]}'
        family_name = self.authors[0].rpartition(' ')[2].lower()
        word = next(word for word in re.findall(r'[a-z]+', self.title.lower()) if len(word) > 1)
        entries = {
            'title': self.title,
            'author': ' and '.join(self.authors),
            'journal': f'arXiv preprint arXiv:{self.arxiv_id}',
            'year': year,
            'note': self.venue,
        }
        lines = [f'  {key}={{{value}}}' for key, value in entries.items()]
        return '\n'.join((f'@article{{{family_name}{year}{word},', ',\n'.join(lines), '}'))


@dataclass(frozen=True)
class License:
    """License of the weights, where it is stated, and the license field of a Hub copy if that differs.

    Attributes:
        spdx: Its SPDX id in lower case; 'none', SPDX's own word, where the authors give no license at all.
        source: Where it is stated; for 'none', where it was looked for.
        hub_field: The field of the Hub copy, None where it agrees or there is no copy.
    """

    spdx: str
    source: str
    hub_field: str | None = None

    @property
    def given(self) -> bool:
        return self.spdx != 'none'

    @property
    def title(self) -> str:
        """In SPDX's spelling."""
        return {'mit': 'MIT', 'apache-2.0': 'Apache-2.0'}.get(self.spdx, self.spdx)


@dataclass(frozen=True)
class Result:
    """A published accuracy in %, measured by others ('authors' or 'timm').

    Attributes:
        by: Who measured it.
        source: Where it is published, in words.
        source_url: Its address.
    """

    dataset: str
    top1: float
    top5: float | None
    by: str
    source: str
    source_url: str


@dataclass(frozen=True)
class Transfer:
    """A result of the authors after further training on another task; none was measured here.

    Attributes:
        task: Such as 'linear probe'.
        metric: With its unit, such as 'top-1, %'.
        setting: Conditions that a comparison needs, may be empty.
        source: See `Result`.
    """

    task: str
    dataset: str
    metric: str
    value: float
    setting: str
    source: str
    source_url: str


@dataclass(frozen=True)
class Speed:
    """Images per second that the authors measured, on their hardware; see `Result` for the source."""

    images_per_second: int
    setting: str
    source: str
    source_url: str


@dataclass(frozen=True)
class Golden:
    """Reference outputs of the authors' code, with weights filled by a rule, that the tests compare with.

    Attributes:
        reference: Name of the file in `tests/golden/`, without its ending.
        what: Which outputs.
        atol: Largest difference that passes, in double precision.
    """

    reference: str
    what: str
    atol: float


@dataclass(frozen=True)
class Protocol:
    """An evaluation preprocessing and its results.

    Attributes:
        name: Whose it is: 'paper' (the authors) or 'timm'.
        img_size: Side of the square input image in pixels.
        crop_pct: Share of the resized image that is kept, with `crop_mode` 'center'; 1.0 with 'squash'.
        source: Where the protocol is documented.
    """

    name: str
    img_size: int
    crop_pct: float
    crop_mode: str
    source: str
    results: tuple[Result, ...] = ()
    interpolation: str = 'bicubic'

    def result(self, dataset: str = 'imagenet-1k') -> Result | None:
        """First result on a data set, None if none was published."""
        return next((r for r in self.results if r.dataset == dataset), None)

    @property
    def preprocessing(self) -> dict:
        """What it says of an image of whatever size, as arguments of `timm.data.create_transform`."""
        return dict(crop_pct=self.crop_pct, crop_mode=self.crop_mode, interpolation=self.interpolation)


def same_file(one: str, other: str) -> bool:
    """Whether two file names differ only in their endings and in the number that a browser adds to a copy."""
    return _stem(one) == _stem(other)


def _stem(file: str) -> str:
    """'TinyMIM-PT-B (1).pth' -> 'TinyMIM-PT-B'."""
    return re.sub(r' ?\(\d+\)$', '', file.partition('.')[0])


@dataclass(frozen=True)
class Release:
    """One released checkpoint: the single source of its facts.

    Attributes:
        name: 'architecture.tag'.
        url: Address of the authors' file, None where only a person with a browser can download it.
        hf_hub_id: Hub page that holds the weights today, None if there is none.
        num_classes: Classes of the released head, 0 for an encoder without one.
        labels: Label set of that head, a `timm.data.ImageNetInfo` name; None without a head.
        protocols: Documented evaluation preprocessings; the first is the default, the one with the best published
            result.
        training: Data and teacher, in a few words.
        sha256: Of the authors' file, None where nobody published it.
        download_page: Page to download the file from with a browser, where it has no `url`.
        file_name: Name of the authors' file where `url` does not end in it; None where that is unknown.
        file_doubt: Uncertainty about the file or its name.
        other_files: Names of files with the same keys and shapes that hold another model's weights.
        parent: Release that these weights were trained from, None if none of ours.
        golden: Which outputs of this architecture were compared with the authors' code; None if none could be.
        transfers: Published results on other tasks.
        speed: Published throughput.
    """

    name: str
    url: str | None
    hf_hub_id: str | None
    num_classes: int
    labels: str | None
    protocols: tuple[Protocol, ...]
    license: License
    paper: Paper
    origin_url: str
    training: str
    sha256: str | None = None
    download_page: str | None = None
    file_name: str | None = None
    file_doubt: str | None = None
    other_files: tuple[str, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    notes: tuple[str, ...] = field(default=())
    parent: str | None = None
    golden: Golden | None = None
    transfers: tuple[Transfer, ...] = ()
    speed: Speed | None = None

    @property
    def architecture(self) -> str:
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        return self.name.partition('.')[2]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Training data in order, without that of teachers; read from the tag, which follows timm's rules."""
        known = {'in22k': 'imagenet-22k', 'in1k': 'imagenet-1k'}
        return tuple(known[part] for part in dict.fromkeys(self.tag.split('_')) if part in known)

    @property
    def protocol(self) -> Protocol:
        """Default evaluation preprocessing."""
        return self.protocols[0]

    def find_protocol(self, name: str) -> Protocol | None:
        """The protocol of 'paper' or 'timm'; None if there is none on record.

        Where timm measured with the authors' preprocessing, theirs is timm's, too.
        """
        own = (p for p in self.protocols if p.name == name)
        shared = (p for p in self.protocols if any(result.by == name for result in p.results))
        return next(own, None) or next(shared, None)

    @property
    def file(self) -> str | None:
        """Name of the authors' file, None if unknown."""
        return self.file_name or (self.url and self.url.rsplit('/', 1)[-1])

    def has_file(self, name: str) -> bool:
        """Whether a file has the name of the authors' file, see `same_file`."""
        return self.file is not None and same_file(name, self.file)

    @property
    def manual_download(self) -> str | None:
        """File to download with a browser, and from where; None where a program can."""
        if self.download_page is None:
            return None
        file = self.file or 'the file (its name is not known)'
        doubt = f' ({self.file_doubt})' if self.file_doubt else ''
        return f'{file} from {self.download_page}{doubt}'

    @property
    def img_size(self) -> int:
        """Side of the square image that the weights are for, in pixels."""
        return self.protocol.img_size

    @property
    def profile(self) -> Profile:
        """Parameters, MACs and bytes at the released image size, with the released head."""
        return find_profile(self.name)

    def pretrained_cfg(self) -> dict:
        """The part of timm's pretrained cfg that a release determines; families add their module names."""
        browser = [f'to be fetched with a browser: {self.manual_download}'] if self.manual_download else []
        return dict(
            url=self.url,
            hf_hub_id=self.hf_hub_id,
            num_classes=self.num_classes,
            input_size=(3, self.protocol.img_size, self.protocol.img_size),
            interpolation=self.protocol.interpolation,
            crop_pct=self.protocol.crop_pct,
            crop_mode=self.protocol.crop_mode,
            mean=self.mean,
            std=self.std,
            license=self.license.spdx,
            origin_url=self.origin_url,
            paper_name=self.paper.title,
            paper_ids=f'arXiv:{self.paper.arxiv_id}',
            notes=(*self.notes, *browser) or None,
        )
