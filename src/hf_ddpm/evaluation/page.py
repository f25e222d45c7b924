"""The picture of an evaluation: its first samples, and beside some of them the real images nearest to them."""

from PIL import Image
from torch import Tensor

from hf_ddpm.data import ImageData, to_float
from hf_ddpm.figures.grid import labelled_grid, stacked, tiles
from hf_ddpm.figures.neighbours import nearest
from hf_ddpm.metrics.extractors import Extractor
from hf_ddpm.metrics.reference import RealFeatures

COLUMNS = 16
COMPARED, NEIGHBOURS = 8, 5


def draw_page(
    first: Tensor, extractor: Extractor, neighbours: tuple[ImageData, RealFeatures, str] | None, title: str
) -> Image.Image:
    """The page.

    Args:
        first: Samples, uint8 (n, C, H, W).
        extractor: In whose features images are near to each other.
        neighbours: Real images with their features, and what they are called; None draws none.
        title: One line.
    """
    shown = tiles(to_float(first))
    blank = Image.new(shown[0].mode, shown[0].size, "white")
    columns = min(COLUMNS, len(shown))
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    rows[-1] = rows[-1] + [blank] * (columns - len(rows[-1]))
    sheets = [labelled_grid(rows, title=title)]
    if neighbours is not None:
        data, features, name = neighbours
        distances, near = nearest(extractor(first[:COMPARED]).pool, features.pool, NEIGHBOURS)
        beside, captions = [], []
        for i in range(len(near)):
            real = data.pixels(features.rows[near[i]])
            beside.append([shown[i], *tiles(to_float(real))])
            captions.append(["", *(f"{d:.1f}" for d in distances[i].tolist())])
        labels = ["sample", *("" for _ in range(near.shape[1]))]
        heading = f"The nearest {name} in the features of {extractor.name}, and how far they are"
        sheets.append(labelled_grid(beside, captions=captions, column_labels=labels, title=heading, wide_gaps=[1]))
    return stacked(*sheets)
