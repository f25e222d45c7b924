"""What was learnt about the images while they were read: conversions, bit depth, and which could not be decoded."""

from collections import Counter
from collections.abc import Mapping

import torch

from hf_ddpm.data.decode import Undecodable
from hf_ddpm.data.facts import RECORDED, SkippedImage
from hf_ddpm.data.options import OnBadImage
from hf_ddpm.data.raw import RawBatch
from hf_ddpm.errors import UserError


class Report:
    """Counts what happens to the images of `source`; raises `UserError` at a bad one when `on_bad_image` is "error"."""

    def __init__(self, source: str, on_bad_image: OnBadImage) -> None:
        self.bit_depth = 8
        self.brightest: int | None = None  # value of all images, once all of them were seen
        self.bad: dict[int, Undecodable] = {}
        self.notes: Counter[str] = Counter()
        self._source = source
        self._on_bad_image = on_bad_image

    def add(self, raw: RawBatch) -> None:
        """Account for one process's part of a step."""
        self.notes.update(raw.notes)
        if raw.pixels.dtype == torch.uint16:
            self.bit_depth = 16
        self.add_bad(raw.bad)
        if bool((raw.rows < 0).any()):
            raise UserError(
                f"too many images of {self._source!r} in a row cannot be decoded ({len(raw.bad)}); mend the data set"
            )

    def add_bad(self, bad: Mapping[int, Undecodable]) -> None:
        """Count undecodable images (row -> reason), or refuse the first."""
        self.bad.update(bad)
        if bad and self._on_bad_image == "error":
            row = min(bad)
            raise UserError(
                f"image {row} of {self._source!r} cannot be decoded: {bad[row]}; "
                "mend or remove it, or set on_bad_image to 'skip'"
            )

    def skipped_images(self) -> tuple[SkippedImage, ...]:
        """The first few by their rows."""
        return tuple(SkippedImage(row, bad.file, bad.reason) for row, bad in sorted(self.bad.items())[:RECORDED])
