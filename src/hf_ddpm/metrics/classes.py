"""Whether samples of a class look like real images of it, to their nearest neighbour."""

from typing import NamedTuple

from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.neighbours import nearest_others


class ClassAccuracy(NamedTuple):
    """samples: the share of samples whose nearest real image has their class. real: the same of real images."""

    samples: float
    real: float


def class_accuracy(samples: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> ClassAccuracy:
    """The accuracy of the nearest neighbour among real images, for samples and, each without itself, for real ones.

    It knows no parameters and no classifier of other classes. What real images reach is the most that a number in these
    features can tell.

    Args:
        samples, real: features (N, D) and (M, D).
        labels, real_labels: the class that each sample was asked for, and those of the real images, (N,) and (M,).

    Raises:
        UserError: labels of another number, a class without a real image, or features that are not finite.
    """
    for name, features, classes in (("samples", samples, labels), ("real images", real, real_labels)):
        if classes.shape != (len(features),):
            raise UserError(f"{len(features):,} {name} have labels of shape {tuple(classes.shape)}: give one for each")
    strange = sorted({*labels.tolist()} - {*real_labels.tolist()})
    if strange:
        raise UserError(f"no real image has class {strange[0]}, of which there are samples: give more real images")
    right = real_labels[nearest_others(samples, real)] == labels
    right_of_real = real_labels[nearest_others(real)] == real_labels
    return ClassAccuracy(right.double().mean().item(), right_of_real.double().mean().item())
