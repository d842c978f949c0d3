"""Computing that gives the same bytes every time, on any number of cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import torch

__all__ = ['exact_cudnn', 'in_order', 'one_thread']

MOST_THREADS = 16  # each holds the activations of a batch


def exact_cudnn() -> AbstractContextManager:
    """A block without TF32, which is less than float32, and without choices that differ from run to run."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """A block that computes in one thread.

    For small tensors: threads that wait for each other take many times as long as soon as something else wants a core.
    And for equal bytes: where threads divide a tensor among them, the numbers at the ends are rounded otherwise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(
    forward: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor], device: torch.device
) -> Iterator[torch.Tensor]:
    """`forward` of each batch, on the CPU, in order.

    On the CPU, as many threads as torch would use compute one batch each. Threads that share one batch round its sums
    differently as there are more or fewer of them; so the result is the same for any number, and ready no later.
    """
    if device.type != 'cpu':
        for batch in batches:
            yield forward(batch).cpu()
        return
    threads = torch.get_num_threads()
    waiting = deque()
    with ThreadPoolExecutor(min(threads, MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(forward, batch))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)  # a new thread would take over what the last one asked for
