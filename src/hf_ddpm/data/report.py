"""What was found while images were read: conversions, bit depth, and images that could not be decoded."""

from collections import Counter
from collections.abc import Mapping

import torch

from hf_ddpm.data.decode import Undecodable
from hf_ddpm.data.facts import RECORDED, SkippedImage
from hf_ddpm.data.options import OnBadImage
from hf_ddpm.data.raw import RawBatch
from hf_ddpm.errors import UserError


class Report:
    """Counts what happens to the images of `source`; raises `UserError` for a bad one if `on_bad_image` is "error"."""

    def __init__(self, source: str, on_bad_image: OnBadImage) -> None:
        self.bit_depth = 8
        self.brightest: int | None = None  # the largest value of all images, once all were decoded
        self.bad: dict[int, Undecodable] = {}
        self.notes: Counter[str] = Counter()
        self._source = source
        self._on_bad_image = on_bad_image

    def add(self, raw: RawBatch) -> None:
        """Count one process's part of a step."""
        self.notes.update(raw.notes)
        if raw.pixels.dtype == torch.uint16:
            self.bit_depth = 16
        self.add_bad(raw.bad)
        if bool((raw.rows < 0).any()):
            raise UserError(
                f"too many consecutive images of {self._source!r} cannot be decoded ({len(raw.bad)}); fix the dataset"
            )

    def add_bad(self, bad: Mapping[int, Undecodable]) -> None:
        """Count undecodable images (row -> reason), or raise an error for the first one."""
        self.bad.update(bad)
        if bad and self._on_bad_image == "error":
            row = min(bad)
            raise UserError(
                f"image {row} of {self._source!r} cannot be decoded: {bad[row]}; "
                "fix or remove it, or train with on_bad_image set to 'skip'"
            )

    def skipped_images(self) -> tuple[SkippedImage, ...]:
        """Return the first few skipped images, by row."""
        return tuple(SkippedImage(row, bad.file, bad.reason) for row, bad in sorted(self.bad.items())[:RECORDED])
