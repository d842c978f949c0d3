"""A classifier of transformers as teacher, from a folder or a page of the Hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import is_model, parse_model_name, split_model_name_tag
from timm.models._hub import download_from_hf, hf_split

from ..build import asking_once
from ..common.errors import ModelError
from ..common.extras import needs_extra
from ..common.paths import read_json
from ..common.text import count_of, first_few, reason
from ..names import CONFIG, resolve_name
from .teacher import Teacher

__all__ = ['Page', 'find_page', 'find_transformers_teacher', 'image_size', 'normalization', 'quiet_transformers']

NO_COUNTERPART = 'do_flip_channel_order', 'rescale_offset'
"""Steps of a preprocessing that no mean and no standard deviation stand for."""


class Page(NamedTuple):
    """Where a model of transformers lies: a folder or page of the Hub, with the revision, if one is named."""

    name: str
    place: str
    revision: str | None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`; no code of a folder or page is ever run."""
        return dict(trust_remote_code=False, **(dict(revision=self.revision) if self.revision else {}))


def find_page(name: str) -> Page | None:
    """Where the model of that name lies if it is one of transformers; None if it is timm's, or nothing at all.

    Args:
        name: A folder, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'. It is a model of transformers if its config.json has
            a `model_type` and no `architecture`, as timm's have.

    Raises:
        ModelError: If it is a folder without a model, or a page that cannot be read.
    """
    name = resolve_name(name)
    if is_model(split_model_name_tag(name)[0]):
        return None
    try:
        source, place = parse_model_name(name)
    except ValueError:
        return None
    if source not in ('local-dir', 'hf-hub'):
        return None
    with asking_once(name, {}):
        try:
            config = read_json(Path(place) / CONFIG if source == 'local-dir' else Path(download_from_hf(place, CONFIG)))
        except ValueError:
            return None
    if not isinstance(config, dict) or 'architecture' in config or 'model_type' not in config:
        return None
    page, revision = hf_split(place) if source == 'hf-hub' else (place, None)
    return Page(name.removeprefix('local-dir:'), page, revision)


def find_transformers_teacher(name: str, **settings: Any) -> Teacher | None:
    """The teacher of that name if it is a model of transformers; None if it is timm's, or nothing at all.

    It takes images of the size and with the mean and standard deviation that its own preprocessing has. No code of a
    folder or page is ever run.

    Args:
        name: See `find_page`.
        **settings: Of `Teacher`.

    Raises:
        ModelError: If it is one and cannot be loaded, is not a classifier, or its preprocessing cannot be followed.
        MissingExtraError: If it is one and transformers is not installed.
    """
    page = find_page(name)
    if page is None:
        return None
    with asking_once(resolve_name(name), {}):
        return _load(page, settings)


def _load(page: Page, settings: Mapping[str, Any]) -> Teacher:
    with needs_extra('transformers'):
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    name, place, _ = page
    try:
        with quiet_transformers():
            model, report = AutoModelForImageClassification.from_pretrained(
                place, output_loading_info=True, **page.options
            )
            processor = AutoImageProcessor.from_pretrained(place, **page.options).to_dict()
    except Exception as e:  # files and pages of others fail in any way
        raise ModelError(f'{name} cannot be loaded as a classifier of transformers: {reason(e, longest=300)}') from e
    fresh = sorted(report['missing_keys']) + [key for key, *_ in report['mismatched_keys']]
    if fresh:
        raise ModelError(
            f'{name} has no weights for {first_few(fresh)} of {type(model).__name__}, and only a whole classifier can '
            'teach: take a page or folder that has been fine-tuned.'
        )
    size = image_size(name, processor, model.config)
    mean, std = normalization(name, processor)
    return Teacher(model.float(), name, size, mean, std, **settings)


def image_size(name: str, processor: Mapping[str, Any], config: Any) -> tuple[int, int]:
    """(height, width) of the images that the model gets in the end."""
    sizes = [
        processor.get('do_center_crop') and processor.get('crop_size'),
        processor.get('do_resize') and processor.get('size'),
        getattr(config, 'image_size', None),
    ]
    for size in filter(None, sizes):
        values = size if isinstance(size, Mapping) else dict(height=size, width=size)
        height, width = (values.get(side) or values.get('shortest_edge') for side in ('height', 'width'))
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise ModelError(f'{name}: its preprocessing does not say the size of its images.')


def normalization(name: str, processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for pixels from 0 to 1."""
    strange = [step for step in NO_COUNTERPART if processor.get(step)]
    if strange:
        raise ModelError(f'{name} cannot teach here: its preprocessing has the step {strange[0]}, which views lack.')
    white = 255 * processor.get('rescale_factor', 1 / 255) if processor.get('do_rescale', True) else 255.0
    normalized = processor.get('do_normalize') and processor.get('image_mean') is not None
    mean, std = (processor['image_mean'], processor['image_std']) if normalized else ((0.0,) * 3, (1.0,) * 3)
    if len(mean) != 3 or len(std) != 3:
        raise ModelError(
            f'{name} cannot teach here: it takes images of {count_of(len(mean), "channel")}, and all data is RGB.'
        )
    # (white * x - mean) / std; a factor of 1/255 as JSON has it leaves both as they are.
    white = 1.0 if abs(white - 1) < 1e-9 else white
    return tuple(value / white for value in mean), tuple(value / white for value in std)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A block in which transformers shows no bars and no report of what it loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
