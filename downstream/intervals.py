"""How sure an accuracy is."""

import math

__all__ = ['wilson']


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval in % (Wilson 1927) of an accuracy in %: these images as a sample of all such images.

    Unlike the one from the binomial's variance it has a width at 0 and 100 %, too.
    """
    share, z = accuracy / 100, 1.96
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (middle - half) / (1 + z**2 / images), 100 * (middle + half) / (1 + z**2 / images)
