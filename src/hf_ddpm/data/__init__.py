"""Image datasets of any source that `datasets` can open, as an endless, exactly resumable stream of batches."""

from hf_ddpm.data.binarize import binarized
from hf_ddpm.data.image_data import Batch, ImageData
from hf_ddpm.data.pixels import to_float, to_uint8

__all__ = ["Batch", "ImageData", "binarized", "to_float", "to_uint8"]
