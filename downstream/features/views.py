"""A frozen backbone over images as a linear probe needs them: with new crops in every epoch, or plain."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from tinyvit_zoo.common.determinism import in_order
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.transforms import data_config, own_dtype

from .batches import check_finite, load
from .one_pass import features_of_layers

__all__ = ['Backbone', 'probe_transforms']

Transform = Callable[[Image.Image], torch.Tensor]


def probe_transforms(model: nn.Module, scale: tuple[float, float] = (0.08, 1.0)) -> tuple[Transform, Transform]:
    """MoCo v3's transforms (main_lincls.py) for training and testing, with the model's size, mean and std.

    Both are bilinear. Training: random resized crop and horizontal flip. Testing: the shorter side is resized to
    256 / 224 of the model's size, and the center is cropped.

    Args:
        model: Any timm model.
        scale: Area of the random crop as a share of the image.
    """
    config = data_config(model)
    size = config['input_size'][-2:]
    end = [transforms.ToTensor(), transforms.Normalize(config['mean'], config['std'])]
    train = [transforms.RandomResizedCrop(size, scale), transforms.RandomHorizontalFlip(), *end]
    test = [transforms.Resize(round(max(size) * 256 / 224)), transforms.CenterCrop(size), *end]
    return transforms.Compose(train), transforms.Compose(test)


class Backbone:
    """A frozen model that turns images into features of several layers, with one pass per image.

    Args:
        model: Any timm model, in eval mode.
        layers: See `layers.feature_function`.
        dtype: float32, or bfloat16 by autocast.
        device: Of the model and the features.
        chunk: Images of a forward pass.
        workers: Processes that read images.
        processes: The group that shares the work.

    Attributes:
        passes: Images that this process has passed through the model so far.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
        chunk: int,
        workers: int,
        processes: Processes,
    ) -> None:
        self.layers, self.device, self.chunk, self.workers = list(layers), device, chunk, workers
        self.processes = processes
        self.passes = 0
        self._widths: list[int] = []  # of the layers, known after a pass
        features = features_of_layers(model, layers)
        own = own_dtype(model)

        @torch.inference_mode()
        def forward(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = [x.float() for x in features(images.to(device, own))]
            self._widths = [x.shape[1] for x in found]
            return torch.cat(found, dim=1)

        self._forward = forward

    def features(self, dataset: ImageDataset, transform: Transform) -> dict[str, torch.Tensor]:
        """Features of all images in their order, on every process: by layer (N, D) float32."""
        starts = range(0, len(dataset), self.chunk)
        chunks = {s: [(0, i) for i in range(s, min(s + self.chunk, len(dataset)))] for s in starts}
        mine = dict(list(chunks.items())[self.processes.rank :: self.processes.number])
        done = zip(mine, self._pass(dataset, transform, None, list(mine.values())), strict=True)
        found = self.processes.gather({start: x.cpu() for start, x in done})
        x = torch.cat([found[start] for start in chunks]).to(self.device)
        widths = self.processes.gather({self.processes.rank: self._widths})
        self._widths = next(filter(None, widths.values()))  # processes without a chunk do not know them
        return self._by_layer(x)

    def views(
        self, dataset: ImageDataset, transform: Transform, seed: int, batches: Sequence[Sequence[tuple[int, int]]]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Features of augmented images: by layer (B, D) float32 for every batch.

        Args:
            dataset: N images.
            transform: Its random numbers depend on (seed, position, view) alone.
            seed: Of the transform.
            batches: Each a list of (view, position).
        """
        cuts = [[batch[i : i + self.chunk] for i in range(0, len(batch), self.chunk)] for batch in batches]
        results = self._pass(dataset, transform, seed, [chunk for cut in cuts for chunk in cut])
        for cut in cuts:
            parts = [next(results) for _ in cut]
            empty = torch.zeros(0, sum(self._widths))
            yield self._by_layer((torch.cat(parts) if parts else empty).to(self.device))

    def _by_layer(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.layers, x.split(self._widths, dim=1), strict=True))

    def _pass(
        self, dataset: ImageDataset, transform: Transform, seed: int | None, chunks: list[Sequence[tuple[int, int]]]
    ) -> Iterator[torch.Tensor]:
        images = load(dataset, transform, seed, chunks, self.workers)
        for chunk, x in zip(chunks, in_order(self._forward, images, self.device), strict=True):
            check_finite(x, dataset, [position for _, position in chunk])
            self.passes += len(chunk)
            yield x
