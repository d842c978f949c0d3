"""Computation that gives the same bytes every time, on any number of cores."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import torch

__all__ = ['exact_cudnn', 'in_order', 'one_thread']

MOST_THREADS = 16  # each holds the activations of one batch


def exact_cudnn() -> AbstractContextManager:
    """A block without TF32, which is less precise than float32, and with deterministic algorithms of cuDNN."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """A block that computes in one thread.

    This is faster for small tensors: threads that wait for each other take many times as long once another process
    wants a core. It also keeps bytes equal: where threads split a tensor, values at the edges of the parts are rounded
    differently.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(
    forward: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor], device: torch.device
) -> Generator[torch.Tensor, None, None]:
    """Yield `forward` of each batch, moved to the CPU, in the order of the batches.

    If `device` is the CPU, as many threads as torch would use compute one batch each. Threads that share one batch
    round its sums differently depending on their number; one thread per batch gives the same result for any number of
    threads and takes no longer.
    """
    if device.type != 'cpu':
        for batch in batches:
            yield forward(batch).cpu()
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[torch.Tensor]] = deque()
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
            torch.set_num_threads(threads)  # new threads inherit the number that the last thread set
