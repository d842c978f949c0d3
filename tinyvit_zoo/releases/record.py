"""What is known of a released checkpoint, in one record."""

from dataclasses import dataclass, field

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ['Licence', 'Paper', 'Protocol', 'Release', 'Result']


@dataclass(frozen=True)
class Paper:
    """A paper; `arxiv_id` such as '2207.10666'."""

    title: str
    arxiv_id: str

    @property
    def url(self) -> str:
        return f'https://arxiv.org/abs/{self.arxiv_id}'


@dataclass(frozen=True)
class Licence:
    """Licence of the weights (SPDX id), where it is stated, and what a Hub copy's own field says if it differs."""

    spdx: str
    source: str
    hub_field: str | None = None


@dataclass(frozen=True)
class Result:
    """A measured accuracy in %, by whom ('authors' or 'timm') and where it stands; none was measured here."""

    dataset: str
    top1: float
    top5: float | None
    by: str
    source: str


@dataclass(frozen=True)
class Protocol:
    """Evaluation preprocessing and what it gave.

    Attributes:
        name: Who evaluates so: 'paper' (the authors) or 'timm'.
        img_size: Side of the square image that the model sees.
        crop_pct: Share of the resized image that is kept, with `crop_mode` 'center'; 1.0 with 'squash'.
        source: Where the protocol is written down.
    """

    name: str
    img_size: int
    crop_pct: float
    crop_mode: str
    source: str
    results: tuple[Result, ...] = ()
    interpolation: str = 'bicubic'

    def result(self, dataset: str = 'imagenet-1k') -> Result | None:
        return next((r for r in self.results if r.dataset == dataset), None)


@dataclass(frozen=True)
class Release:
    """One released checkpoint: the only place where its facts stand.

    Attributes:
        name: 'architecture.tag'.
        url: The authors' file.
        hf_hub_id: Hub page that holds the weights today, None if there is none.
        num_classes: Classes of the released head.
        labels: Label set of that head, a `timm.data.ImageNetInfo` name.
        protocols: Evaluation preprocessings on record; the first is the default, the one with the best measured
            result.
        training: Data and teacher, in a few words.
        sha256: Of the authors' file, None where nobody published it.
    """

    name: str
    url: str
    hf_hub_id: str | None
    num_classes: int
    labels: str
    protocols: tuple[Protocol, ...]
    licence: Licence
    paper: Paper
    origin_url: str
    training: str
    sha256: str | None = None
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    notes: tuple[str, ...] = field(default=())

    @property
    def architecture(self) -> str:
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        return self.name.partition('.')[2]

    @property
    def protocol(self) -> Protocol:
        """Default evaluation preprocessing."""
        return self.protocols[0]

    @property
    def file(self) -> str:
        """Name of the authors' file."""
        return self.url.rsplit('/', 1)[-1]

    @property
    def img_size(self) -> int:
        """Side of the square image the weights were made for."""
        return self.protocol.img_size

    def pretrained_cfg(self) -> dict:
        """The part of timm's pretrained cfg that a release determines; families add their module names."""
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
            license=self.licence.spdx,
            origin_url=self.origin_url,
            paper_name=self.paper.title,
            paper_ids=f'arXiv:{self.paper.arxiv_id}',
            notes=self.notes or None,
        )
