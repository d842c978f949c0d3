"""A Segment Anything model as teacher of a smaller image encoder, and the model that this encoder and the rest make.

The encoder alone is learned, as in MobileSAM (https://arxiv.org/abs/2306.14289): prompt encoder and mask decoder are
those of the teacher.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..build import asking_once
from ..common.errors import EvaluationError, ModelError
from ..common.paths import user_path
from ..data.sam_images import MEAN, STD
from ..dense.sam import SamImageEncoder
from ..hub.sam import TinyVitSamModel, load_sam, new_sam
from ..names import resolve_name
from ..soft_labels.transformers_teacher import find_page
from ..training.feature_teacher import FeatureTeacher, load_feature_teacher, load_transformers_model, teacher_of
from ..training.sam_embeddings import StoredEmbeddings

if TYPE_CHECKING:
    from transformers import SamModel

__all__ = ['Maps', 'SamTeacher', 'find_maps', 'load_sam_teacher', 'sam_around']

DECODER = ('shared_image_embedding', 'prompt_encoder', 'mask_decoder')


class SamTeacher(NamedTuple):
    """What an encoder learns from, and what it can be put in front of."""

    encoder: FeatureTeacher
    """The image encoder."""
    whole: 'SamModel | None'
    """The model that it is part of; None if there is no mask decoder, as beside a `SamVisionModel`."""


def load_sam_teacher(name: str) -> SamTeacher:
    """The teacher of that name, in float32.

    Args:
        name: A folder or 'hf-hub:OWNER/NAME' of transformers with a SAM or its image encoder; a SAM with a TinyViT, see
            `hub.sam.load_sam`; or a SAM encoder of timm, such as 'samvit_base_patch16.sa1b'.

    Raises:
        ModelError: On an unknown name, or a model that cannot be loaded.
        CheckpointError: If the weights cannot be found, read or matched.
        EvaluationError: If it has no map of features.
    """
    from transformers import SamModel

    path = user_path(name)
    if path.is_file():
        return _of_tinyvit(name, load_sam(path))
    page = find_page(str(path) if path.is_dir() else name)
    if page is None:
        return SamTeacher(load_feature_teacher(name), None)
    with asking_once(resolve_name(name), {}):
        model, processor = load_transformers_model(page)
        if isinstance(model, TinyVitSamModel):
            return _of_tinyvit(name, model)
        return SamTeacher(teacher_of(page, model, processor), model if isinstance(model, SamModel) else None)


def _of_tinyvit(name: str, model: TinyVitSamModel) -> SamTeacher:
    side = model.float().config.vision_config.image_size
    return SamTeacher(FeatureTeacher.of_transformers(model, name, MEAN, STD, (side, side)), model)


def sam_around(encoder: SamImageEncoder, architecture: str, whole: Any) -> TinyVitSamModel:
    """A SAM of an encoder, and of the prompt encoder and mask decoder of another one; it shares no weights with them.

    Args:
        encoder: For squares, with the windows of the released one.
        architecture: Of its trunk.
        whole: A `SamModel` whose decoder takes the encoder's channels.

    Raises:
        ModelError: If they do not fit together, or the size is not a multiple of 16.
    """
    model = new_sam(architecture, max(encoder.img_size), encoder)
    try:
        for part in DECODER:
            getattr(model, part).load_state_dict(getattr(whole, part).state_dict())
    except RuntimeError as e:
        raise ModelError(
            f'The prompt encoder and mask decoder of this {type(whole).__name__} are not those of the released SAM, so '
            'they do not fit our encoders: leave --teacher out, or name another.'
        ) from e
    return model


class Maps(NamedTuple):
    """What an encoder learns from: see `training.sam.distil_sam`."""

    source: FeatureTeacher | StoredEmbeddings
    img_size: tuple[int, int]
    """(H, W) of the images that the maps are of."""
    whole: 'SamModel | None'
    """The SAM whose decoder goes with what results."""


def find_maps(teacher: str | None, store: str | Path | None) -> Maps:
    """The maps of a live encoder, or those in a folder.

    Args:
        teacher: See `load_sam_teacher`; None for a store alone, which has no decoder.
        store: Folder of `save_embeddings`, in place of a live encoder; None for that.

    Raises:
        EvaluationError: If neither is given, the folder does not hold all maps, or they are of another encoder.
        ModelError: As `load_sam_teacher`, also for CheckpointError.
    """
    stored = None if store is None else StoredEmbeddings(store)
    if teacher is None:
        if stored is None:
            raise EvaluationError('Nothing teaches the encoder: name a SAM, a folder of embeddings, or both.')
        return Maps(stored, stored.facts.img_size, None)
    found = load_sam_teacher(teacher)
    if stored is None:
        return Maps(found.encoder, found.encoder.input.size, found.whole)
    if stored.facts.sha256 != found.encoder.sha256:
        raise EvaluationError(f'The embeddings in {store} are of another encoder than that of {teacher}.')
    return Maps(stored, stored.facts.img_size, found.whole)
