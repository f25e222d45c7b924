"""One way to hold a value against its annotation."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.annotations import as_annotated, check_arguments, choices_of, described, entries_of

Word = Literal["linear", "cosine"]
REFUSED = NotImplemented


@pytest.mark.parametrize(
    ("value", "annotation", "found"),
    [
        (1, float, 1.0),
        (10**400, float, REFUSED),
        (1, int, 1),
        (1.0, int, REFUSED),
        (True, int, REFUSED),
        (True, float, REFUSED),
        (1, bool, REFUSED),
        ("1e-4", float, REFUSED),
        (None, int | None, None),
        (None, int, REFUSED),
        ("cosine", Word, "cosine"),
        ("cosin", Word, REFUSED),
        ([1], Word, REFUSED),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([0.5] * 3, Sequence[float], (0.5,) * 3),
        ([0.5, "x"], Sequence[float], REFUSED),
        ([1, 2], int | tuple[int, int], (1, 2)),
        ([1, 2, 3], int | tuple[int, int], REFUSED),
        ([1, True], list[int], REFUSED),
        ("ab", Sequence[str], "ab"),
        ("ab", Sequence[float], REFUSED),
        ([[1], [2, 3]], tuple[tuple[int, ...], ...], ((1,), (2, 3))),
        ([0.5], np.ndarray | list[float] | None, (0.5,)),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        ({"a": 1}, tuple[str, ...], REFUSED),
        ({"a": 1}, Any, {"a": 1}),
    ],
    ids=str,
)
def test_a_value_is_of_its_annotation_or_refused(value, annotation, found):
    assert as_annotated(value, annotation) == found
    assert type(as_annotated(value, annotation)) is type(found)


def test_an_annotation_in_words():
    assert described(int | tuple[int, int] | None) == "int or a list of int, int or null"
    assert described(Word | float) == "one of linear, cosine or float"
    assert choices_of(Word | None) == ["linear", "cosine"] and choices_of(str) == []
    assert entries_of(int | tuple[int, ...]) is int and entries_of(str | None) is None
    assert entries_of(np.ndarray | None) is Any


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_train_timesteps": "1000"}, "^num_train_timesteps='1000' must be a whole number of at least 1$"),
        ({"num_train_timesteps": True}, "^num_train_timesteps=True must be int$"),
        ({"beta_start": "1e-4"}, "^beta_start='1e-4' must be float$"),
        ({"beta_end": None}, "^beta_end=None must be float$"),
        ({"clip_sample": 1}, "^clip_sample=1 must be bool$"),
        ({"steps_offset": [1]}, r"^steps_offset=\[1\] must be int$"),
        ({"trained_betas": ["0.1"]}, r"^trained_betas=\['0.1'\] must be a list of float or null$"),
        ({"beta_schedule": 7}, "^beta_schedule=7 must be one of 'linear', "),
        ({"prediction_type": "epsilom"}, "did you mean 'epsilon'"),
    ],
    ids=str,
)
def test_a_schedulers_arguments_are_held_against_its_annotations(arguments, said):
    with pytest.raises(ValueError, match=said):
        HFDDPMScheduler(**arguments)


def test_numbers_of_other_libraries_are_their_constructors_business():
    betas = [0.1, 0.2]
    for given in (betas, tuple(betas), np.array(betas), torch.tensor(betas, dtype=torch.float64), np.float64(betas)):
        assert HFDDPMScheduler(2, trained_betas=given).betas.tolist() == betas
    assert HFDDPMScheduler(2, beta_start=np.float32(0.001)).betas[0] == pytest.approx(0.001)
    check_arguments(HFDDPMScheduler, {**HFDDPMScheduler().config, "beta_start": 1, "trained_betas": None})
