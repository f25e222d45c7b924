"""The plot of a sweep shows what bends: each figure in a panel of its own, on axes that can be read."""

import math

import pytest

from hf_ddpm.evaluation.report import described
from hf_ddpm.evaluation.sweep import draw_sweep
from hf_ddpm.figures import plots

TYPES = {
    "digit distance": "digit_distance",
    "share of sure digits": "digit_share",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class accuracy": "class_accuracy",
    "class accuracy, real images": "class_accuracy_real",
    "digit distance, class 0": "class_frechet_distance",
}


def sweep(scales, names=TYPES, **others):
    """Cells over a scale, whose distance bends and whose accuracy grows from a tenth to one."""
    of = {"digit distance": lambda s: 10 + (s - 2) ** 2, "class accuracy": lambda s: 1 - 0.9 * math.exp(-s)}
    cells = []
    for scale in scales:
        for axis, values in others.items() or [("", [""])]:
            for value in values:
                numbers = [
                    {"name": name, "type": TYPES[name], "value": of.get(name, lambda s: 0.9 - s / 50)(float(scale))}
                    for name in names
                ]
                cells.append(
                    {"cell": {"classifier-scale": scale} | ({axis: value} if axis else {}), "numbers": numbers}
                )
    return {"axes": {"classifier-scale": scales, **others}, "cells": cells}


@pytest.fixture
def panels(monkeypatch):
    """What was drawn: the axes of each panel, by its title."""
    drawn = {}

    def look(panels, **layout):
        seen = [lambda axes, draw=draw: (draw(axes), drawn.update({axes.get_title(): axes})) for draw in panels]
        return plots.plot(seen, **layout)

    monkeypatch.setattr("hf_ddpm.evaluation.sweep.plot", look)
    return drawn


def test_fidelity_and_diversity_are_both_drawn(panels):
    picture = draw_sweep(sweep(["0", "1", "2", "4", "8"]))
    assert list(panels) == ["digit distance", "share of sure digits", "precision", "recall", "class accuracy"]
    assert picture.size == (1260, 600)
    below = picture.crop((850, 310, 1260, 600))
    assert below.getextrema() == ((255, 255),) * 3  # nothing stands in the place of a sixth panel
    (line,) = panels["class accuracy"].lines
    assert line.get_xdata().tolist() == [0, 1, 2, 4, 8]
    assert line.get_ydata() == pytest.approx([1 - 0.9 * math.exp(-s) for s in (0, 1, 2, 4, 8)])
    for axes in panels.values():
        assert axes.get_xscale() == "linear" and axes.get_xticklabels()[0].get_text() == "0"
    assert panels["digit distance"].get_yscale() == "log"  # 10 to 46
    assert panels["class accuracy"].get_yscale() == "linear"  # a share, though it grows tenfold


def test_a_scale_without_0_is_logarithmic_and_other_axes_are_curves(panels):
    found = sweep(
        ["1", "1.25", "4"], names=("digit distance", "precision", "recall", "class accuracy"), steps=["5", "9"]
    )
    assert draw_sweep(found).size == (840, 600)  # two by two
    for axes in panels.values():
        assert axes.get_xscale() == "log"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "1.25", "4"]
        assert [line.get_label() for line in axes.lines] == ["steps 5", "steps 9"]


def test_one_figure_is_one_panel(panels):
    assert draw_sweep(sweep(["0", "1"], names=("digit distance",))).size == (420, 300)
    assert list(panels) == ["digit distance"]


def test_what_guided_is_said_with_the_sampler():
    samples = {"scheduler": {"class": "Solver"}, "seed": 0, "call": {"num_inference_steps": 9, "classifier_scale": 2.0}}
    found = {"num_images": 4, "draws": 1, "samples": samples, "reference": {}, "extractor": {"extractor": "digits"}}
    assert "Solver with 9 steps, classifier_scale 2, seed 0, against" in described({"conditions": found})
