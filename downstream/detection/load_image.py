"""The step of a pipeline that reads an image, with the reader of `classify` and `detect predict`."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from tinyvit_zoo.common.errors import EvaluationError, ImageError
from tinyvit_zoo.data.image_file import load_image

__all__ = ['ZooLoadImage']


@TRANSFORMS.register_module()
class ZooLoadImage(BaseTransform):
    """Reads `img_path` as mmcv's LoadImageFromFile does: uint8 (H, W, 3), blue first, turned as EXIF says.

    mmcv's own step reads some files with more than 8 bits as white or black, and gives boxes to an image of any size.

    Args:
        to_float32: Give float32.

    Raises:
        EvaluationError: If the file cannot be read, or has another size than the annotations say.
    """

    def __init__(self, to_float32: bool = False) -> None:
        self.to_float32 = to_float32

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds `img`, `img_shape` and `ori_shape`."""
        path = results['img_path']
        try:
            image = load_image(path)
        except ImageError as e:
            raise EvaluationError(str(e)) from e  # the kind whose message passes from a worker as it is
        told = (results.get('width', image.width), results.get('height', image.height))
        if tuple(told) != image.size:
            raise EvaluationError(
                f'{path} has {image.width}x{image.height} pixels, the annotations say {told[0]}x{told[1]}.'
            )
        array = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        results['img'] = array.astype(np.float32) if self.to_float32 else array
        results['img_shape'] = results['ori_shape'] = array.shape[:2]
        return results
