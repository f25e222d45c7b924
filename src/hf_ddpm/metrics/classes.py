"""The class accuracy of samples, measured by their nearest real image."""

from typing import NamedTuple

from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.neighbours import nearest_others


class ClassAccuracy(NamedTuple):
    """samples: the share of samples whose nearest real image has their class. real: the same share for real images."""

    samples: float
    real: float


def class_accuracy(samples: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> ClassAccuracy:
    """Compute nearest-neighbour accuracy among real images, for samples and for each real image against the others.

    It has no parameters and needs no classifier of these classes. The accuracy of real images is the upper limit of
    what can be measured in these features.

    Args:
        samples, real: Features (N, D) and (M, D).
        labels, real_labels: The class that each sample was requested with, (N,), and those of the real images, (M,).

    Raises:
        UserError: If there is not one label for each image, if a class of the samples has no real image, or if features
            are not finite.
    """
    for name, features, classes in (("samples", samples, labels), ("real images", real, real_labels)):
        if classes.shape != (len(features),):
            raise UserError(
                f"the labels of the {name} have shape {tuple(classes.shape)}, but must have shape ({len(features)},): "
                "pass one label for each"
            )
    strange = sorted({*labels.tolist()} - {*real_labels.tolist()})
    if strange:
        raise UserError(f"no real image has the class {strange[0]}, but some samples do: use more real images")
    right = real_labels[nearest_others(samples, real)] == labels
    right_of_real = real_labels[nearest_others(real)] == real_labels
    return ClassAccuracy(right.double().mean().item(), right_of_real.double().mean().item())
