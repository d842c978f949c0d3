"""The contraction factors of TinyViT (paper Sec. 3.2 and supplement A), and smaller models around a given one.

Candidates of a step meet the same limit of parameters, so that accuracy compares them: of neighbors that differ in
size, the largest would always win. Each contracts one factor, or none, and then narrows all stages alike until it is
within the limit: by the paper, the width saves most parameters, and a narrower model is given more depth in stage 3.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from ..common.errors import EvaluationError
from ..layers import stage_grids
from ..models.tinyvit import TinyViT, TinyVitStage

__all__ = ['Candidate', 'Factors', 'candidates', 'count_parameters', 'factors_of', 'smallest']

Size = tuple[int, int]

HEAD_STEP = 8  # of the width of heads
LEAST_WINDOW = 2  # cells a side: in a window of one cell there is nothing to attend to
MORE_DEPTH = 2  # blocks that stage 3 gains in a candidate


@dataclass(frozen=True)
class Factors:
    """What makes a TinyViT, under the paper's letters.

    Attributes:
        D: Width of each stage.
        N: Blocks of each stage.
        W: Window (h, w) of each stage but the first.
        R: Hidden width of MBConv over that of its stage.
        M: Hidden width of the MLP over that of its stage.
        E: Width of a head.
    """

    D: tuple[int, ...]
    N: tuple[int, ...]
    W: tuple[Size, ...]
    R: float
    M: float
    E: int

    def arguments(self, start: 'Factors') -> dict[str, Any]:
        """Keyword arguments of `TinyViT`. Windows are among them only where they are not those of `start`, and then
        stay as they are at any image size.
        """
        arguments: dict[str, Any] = dict(
            embed_dims=self.D,
            depths=self.N,
            num_heads=tuple(max(1, width // self.E) for width in self.D),
            mbconv_expand_ratio=self.R,
            mlp_ratio=self.M,
        )
        return arguments if self.W == start.W else dict(arguments, window_sizes=self.W)

    def narrowed(self, stage: int) -> 'Factors':
        """With a head less in that stage."""
        return replace(self, D=_less(self.D, stage, self.E))


@dataclass(frozen=True)
class Candidate:
    """A smaller model.

    Attributes:
        name: The factor that is contracted first, such as 'D4' or 'R'; 'D' where only all widths are, 'N3+2' for more
            blocks.
        factors: Of the model.
        parameters: How many it has.
    """

    name: str
    factors: Factors
    parameters: int


def factors_of(model: nn.Module, name: str) -> Factors:
    """The factors of a TinyViT.

    Args:
        model: The model, which may be on the meta device.
        name: Of the model, for messages.

    Raises:
        EvaluationError: If it is not a TinyViT, or its heads have different widths.
    """
    if not isinstance(model, TinyViT):
        raise EvaluationError(
            f'{name} is not a TinyViT of this package, and only these have the factors that are contracted: start from '
            'one, such as tinyvit_21m_224.'
        )
    first, *rest = model.stages
    expand = cast(nn.Conv2d, cast(Any, first).blocks[0].conv1.conv)
    stages = [cast(TinyVitStage, stage) for stage in rest]
    heads = {stage.blocks[0].attn.head_dim for stage in stages}
    if len(heads) > 1:
        raise EvaluationError(
            f'{name} has heads of {", ".join(map(str, sorted(heads)))} channels: start from a TinyViT whose heads have '
            'the same width in all stages.'
        )
    return Factors(
        D=tuple(info['num_chs'] for info in model.feature_info),
        N=tuple(len(stage.blocks) for stage in model.stages),
        W=tuple(stage.blocks[0].attn.window_size for stage in stages),
        R=expand.out_channels / expand.in_channels,
        M=stages[0].blocks[0].mlp.fc1.out_features / stages[0].blocks[0].mlp.fc1.in_features,
        E=heads.pop(),
    )


def count_parameters(model: nn.Module) -> int:
    """All parameters, also of a model on the meta device."""
    return sum(p.numel() for p in model.parameters())


def smallest(start: Factors) -> Factors:
    """What no contraction of `start` goes below."""
    head = min(HEAD_STEP, start.E)
    return Factors(
        D=(head,) * len(start.D),
        N=(1,) * len(start.N),
        W=tuple((min(LEAST_WINDOW, h), min(LEAST_WINDOW, w)) for h, w in start.W),
        R=start.R - max(0, int(start.R) - 1),
        M=start.M - max(0, int(start.M) - 1),
        E=head,
    )


def candidates(
    current: Factors, limit: int, img_size: Size, count: Callable[[Factors], int], option: str = '--params'
) -> list[Candidate]:
    """The models around `current` that have at most `limit` parameters, each as many as its factors allow.

    Args:
        current: Has more parameters.
        limit: Of parameters.
        img_size: (H, W), from which the next smaller windows follow.
        count: Parameters of a model by its factors; called a few times for each candidate.
        option: What sets the limit, for messages.

    Raises:
        EvaluationError: If no model around it is so small.
    """
    found: dict[Factors, Candidate] = {}
    nearest: Candidate | None = None
    for name, contracted in _contracted(current, limit, stage_grids(img_size, len(current.D)), count):
        path = list(_narrowing(contracted, current.D))
        place = bisect_left(path, -limit, key=lambda factors: -count(factors))
        if place < len(path):
            factors = _widened(path[place], contracted.D, lambda factors: count(factors) <= limit)
            found.setdefault(factors, Candidate(name, factors, count(factors)))
        elif nearest is None or count(path[-1]) < nearest.parameters:
            nearest = Candidate(name, path[-1], count(path[-1]))
    if not found and nearest is not None:
        raise EvaluationError(
            f'No TinyViT around the current one has at most {limit:,} parameters; the nearest ({nearest.name}) has '
            f'{nearest.parameters:,}: give a larger {option}, or more --steps.'
        )
    return list(found.values())


def _contracted(
    current: Factors, limit: int, grids: Sequence[Size], count: Callable[[Factors], int]
) -> Iterator[tuple[str, Factors]]:
    """The names of the factors with the models in which they, and nothing else, are contracted."""
    yield 'D', current
    for i in range(len(current.D)):
        alone = _narrowed_alone(current, i)
        if alone:
            place = bisect_left(alone, -limit, key=lambda factors: -count(factors))
            yield f'D{i + 1}', alone[min(place, len(alone) - 1)]
    for i, blocks in enumerate(current.N):
        if blocks > 1:
            yield f'N{i + 1}', replace(current, N=_less(current.N, i, 1))
    deeper = min(2, len(current.N) - 1)
    yield f'N{deeper + 1}+{MORE_DEPTH}', replace(current, N=_less(current.N, deeper, -MORE_DEPTH))
    for i, (window, grid) in enumerate(zip(current.W, grids[1:], strict=True)):
        smaller = _smaller_window(window, grid)
        if smaller != window:
            yield f'W{i + 2}', replace(current, W=(*current.W[:i], smaller, *current.W[i + 1 :]))
    if current.R >= 2:
        yield 'R', replace(current, R=current.R - 1)
    if current.M >= 2:
        yield 'M', replace(current, M=current.M - 1)
    head = _smaller_head(current)
    if head is not None:
        yield 'E', replace(current, E=head)


def _narrowed_alone(current: Factors, stage: int) -> list[Factors]:
    """The models with fewer and fewer heads in one stage, down to half of its width."""
    found, least = [], max(current.E, current.D[stage] / 2)
    while current.D[stage] - current.E >= least:
        current = current.narrowed(stage)
        found.append(current)
    return found


def _narrowing(factors: Factors, widths: tuple[int, ...]) -> Iterator[Factors]:
    """The model, and narrower and narrower ones, each stage in proportion to `widths` as far as heads allow; of two
    stages the later one first, which has more parameters.
    """
    yield factors
    while any(width > factors.E for width in factors.D):
        left = [((width - factors.E) / own, i) for i, (width, own) in enumerate(zip(factors.D, widths, strict=True))]
        factors = factors.narrowed(max(left)[1])
        yield factors


def _widened(factors: Factors, most: tuple[int, ...], fits: Callable[[Factors], bool]) -> Factors:
    """The model with heads given back as long as it fits: the last narrowing may have taken more than it had to."""
    wider = [replace(factors, D=_less(factors.D, i, -factors.E)) for i in range(len(most))]
    allowed = [(w.D[i] / most[i], i) for i, w in enumerate(wider) if w.D[i] <= most[i] and fits(w)]
    return _widened(wider[min(allowed)[1]], most, fits) if allowed else factors


def _smaller_window(window: Size, grid: Size) -> Size:
    """The window that cuts the map into one more a side, or the same one where that would be too small."""
    smaller = tuple(-(-cells // (-(-cells // side) + 1)) for side, cells in zip(window, grid, strict=True))
    return cast(Size, smaller) if min(smaller) >= LEAST_WINDOW else window


def _smaller_head(current: Factors) -> int | None:
    """The next smaller width of heads that divides all stages."""
    smaller = range((current.E - 1) // HEAD_STEP * HEAD_STEP, 0, -HEAD_STEP)
    return next((head for head in smaller if all(width % head == 0 for width in current.D)), None)


def _less(values: tuple[int, ...], i: int, step: int) -> tuple[int, ...]:
    return (*values[:i], values[i] - step, *values[i + 1 :])
