"""mmdet's CocoDataset and CocoMetric with classes matched by name, on annotations that may lack what can be derived.

mmdet's own give class i to the i-th category that the file lists among the classes, in training and, by another file,
in the metric. On a file that lists all classes in the config's order and lacks nothing these two do what mmdet's do.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.fileio import dump, load
from mmengine.registry import DATASETS, METRICS

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_file import upright_size

from .coco_file import CocoFile, read_coco

__all__ = ['ZooCocoDataset', 'ZooCocoMetric']


def _indexed(file: CocoFile) -> COCO:
    coco = COCO()
    coco.dataset = file.content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names
    return coco


@DATASETS.register_module()
class ZooCocoDataset(CocoDataset):
    """CocoDataset whose labels follow the names in `metainfo`, whatever the order, ids and gaps of the file.

    The sizes of images that the file lacks are read from the images. See `read_coco` for what else is derived.

    Raises:
        EvaluationError: If the file contradicts itself.
    """

    def load_data_list(self) -> list[dict]:
        """Entries as mmdet's, see there."""
        self.COCOAPI = self._read  # what mmdet calls with the path
        return super().load_data_list()

    def _read(self, path: str) -> COCO:
        masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        return _indexed(read_coco(path, self.metainfo['classes'], self._size_of, masks))

    def _size_of(self, image: dict[str, Any]) -> tuple[int, int]:
        return upright_size(Path(self.data_prefix.get('img', ''), image['file_name']))[0]


@METRICS.register_module()
class ZooCocoMetric(CocoMetric):
    """CocoMetric for the classes of the data set, each matched by name with a category of the annotations.

    A class that the annotations lack does not count. With `outfile_prefix` the category ids written are the file's.

    Args:
        ann_file: COCO-format file. Sizes of images that it lacks are those of the images measured.
        **kwargs: Of CocoMetric.
    """

    def __init__(self, ann_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(ann_file=None, **kwargs)
        self.ann_file = ann_file
        if ann_file is not None:
            self._coco_api = COCO()  # filled once the classes are known

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics as mmdet's, see there."""
        if self.ann_file is None:
            return super().compute_metrics(results)
        sizes = {truth['img_id']: (truth['width'], truth['height']) for truth, _ in results}
        classes = self.dataset_meta['classes']
        file = read_coco(self.ann_file, classes, lambda image: _size_in(sizes, image), 'segm' in self.metrics)
        self._coco_api, self.cat_ids, self.img_ids = _indexed(file), None, None
        metrics = super().compute_metrics(results)
        if self.outfile_prefix is not None:
            self._name_as_file(file)
        return metrics

    def _name_as_file(self, file: CocoFile) -> None:
        """Give the results that were written the category ids of the annotation file."""
        used = [category['id'] for category in file.content['categories']]
        own = dict(zip(used, file.category_ids, strict=True))
        for kind in ('bbox', 'segm'):
            path = Path(f'{self.outfile_prefix}.{kind}.json')
            if path.is_file():
                found = load(path)
                dump([{**entry, 'category_id': own[entry['category_id']]} for entry in found], path)


def _size_in(sizes: dict[Any, tuple[int, int]], image: dict[str, Any]) -> tuple[int, int]:
    if not all(sizes.get(image['id']) or [0]):
        raise EvaluationError(f'The image {image["file_name"]} has no width and height in the annotations: add them.')
    return sizes[image['id']]
