"""The picture of an evaluation: the first samples, and some of them beside their nearest real images."""

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
    """Draw the page.

    Args:
        first: The samples, uint8 (n, C, H, W).
        extractor: The network in whose features distances are measured.
        neighbours: The real images, their features, and a name for them; None draws no neighbours.
        title: The title, one line.
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
        heading = f"The nearest {name} in the features of {extractor.name}, and their distances"
        sheets.append(labelled_grid(beside, captions=captions, column_labels=labels, title=heading, wide_gaps=[1]))
    return stacked(*sheets)
