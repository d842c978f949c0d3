"""What marks an object on an image, and how the decoder of Segment Anything takes it."""

from dataclasses import dataclass

import numpy as np
import torch

from ..common.errors import EvaluationError
from ..data.sam_images import fitted_size

__all__ = ['Prompt', 'prompt_arrays']

NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3
"""Labels of points. The first is padding, which goes with points where there is no box."""


@dataclass(frozen=True)
class Prompt:
    """What marks one object, in pixels (x, y) of the image as it is displayed.

    Attributes:
        points: On the object.
        others: On what is not the object.
        box: (x0, y0, x1, y1) around it, or None.
    """

    points: tuple[tuple[float, float], ...] = ()
    others: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None

    def check(self, height: int, width: int) -> None:
        """See that it marks something inside an image.

        Raises:
            EvaluationError: If it is empty, or lies outside.
        """
        if not (self.points or self.box):
            raise EvaluationError('Nothing marks the object: give a --point on it or a --box around it.')
        for x, y in (*self.points, *self.others):
            if not (0 <= x < width and 0 <= y < height):
                raise EvaluationError(
                    f'The point {x:g},{y:g} is outside the image, which is {width} pixels wide and {height} high: give '
                    'X,Y from its upper left corner.'
                )
        if self.box is None:
            return
        x0, y0, x1, y1 = self.box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise EvaluationError(
                f'The box {x0:g},{y0:g},{x1:g},{y1:g} is empty or outside the image, which is {width} pixels wide and '
                f'{height} high: give X0,Y0,X1,Y1 of its upper left and lower right corners.'
            )


def prompt_arrays(prompt: Prompt, image: tuple[int, int], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """`point_coords` float32 (1, N, 2) and `point_labels` float32 (1, N) of the decoder.

    Points come first, then the corners of the box; where there is no box, a point of padding.

    Args:
        prompt: In pixels of the image.
        image: (height, width) of the image.
        size: (H, W) of the model.
    """
    height, width = fitted_size(*image, size)
    points = [*prompt.points, *prompt.others]
    labels = [FOREGROUND] * len(prompt.points) + [BACKGROUND] * len(prompt.others)
    if prompt.box is not None:
        points += [prompt.box[:2], prompt.box[2:]]
        labels += [TOP_LEFT, BOTTOM_RIGHT]
    scaled = np.array(points, np.float64).reshape(-1, 2) * (width / image[1], height / image[0])
    if prompt.box is None:
        scaled = np.append(scaled, [[0.0, 0.0]], axis=0)
        labels.append(NOT_A_POINT)
    return torch.from_numpy(np.float32(scaled))[None], torch.tensor(labels, dtype=torch.float32)[None]
