"""What figures measure falls as theory says, on exact denoisers of Gaussian data."""

from itertools import pairwise

import pytest
import torch

from hf_ddpm.errors import UserError
from hf_ddpm.figures import ddim_consistency, reconstruction, x0_distance
from hf_ddpm.sampling import image_generator


def test_the_prediction_arrives_at_the_sample(gaussian):
    figure = x0_distance(gaussian(), num_images=70)  # more than one batch
    rmse = figure.numbers["rmse"]
    assert rmse == sorted(rmse, reverse=True)
    assert rmse[-1] < 1e-3
    assert rmse[0] == pytest.approx(0.3 * 127.5, rel=0.1)  # at first only the mean is known: S is left
    assert figure.tensors["final"].shape == (70, 1, 8, 8)


def test_predictions_of_digits_are_compared_with_digits(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 20}, sample_size=28)
    digits = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    figure = x0_distance(pipeline, digits, num_images=4, steps=5)
    assert len(figure.numbers["digit_distance"]) == 5
    assert min(figure.numbers["digit_distance"]) > 0
    assert figure.picture.width > 1.5 * x0_distance(pipeline, num_images=4, steps=5).picture.width


def test_images_that_are_no_digits_have_no_digit_distance(gaussian, pictures):
    with pytest.raises(UserError, match="have no digit distance"):
        x0_distance(gaussian(), pictures())


def test_one_x_T_leads_to_one_image_the_more_steps_the_closer(gaussian):
    pipeline = gaussian()
    figure = ddim_consistency(pipeline, num_images=3)
    assert figure.numbers["steps"] == [5, 10, 20, 50, 100]
    rmse = figure.numbers["rmse"]
    assert rmse == sorted(rmse, reverse=True) and rmse[-1] == 0
    assert rmse[0] > 3 * rmse[2] > 0
    own = [image_generator(0, i) for i in range(3)]
    expected = pipeline(3, 10, eta=0.0, timestep_spacing="trailing", generator=own, output_type="pt").images * 2 - 1
    torch.testing.assert_close(figure.tensors["images"][1], expected)


def test_reconstructions_get_better_with_steps(gaussian, pictures):
    images = pictures(8)
    figure = reconstruction(gaussian(), images)
    assert figure.numbers["steps"] == [10, 20, 50, 100]
    errors = figure.numbers["mse"]
    assert all(later < earlier / 2 for earlier, later in pairwise(errors))
    back = figure.tensors["images"][0]
    assert errors[0] == pytest.approx(float(((back - images) / 2).square().mean()), rel=1e-5)  # images in [0, 1]
    assert figure.numbers["mse_clipped"] == errors  # this checkpoint does not clip


def test_images_are_reconstructed_as_their_own_classes(make_pipeline, pictures):
    """More of them than the network sees at a time."""
    pipeline = make_pipeline({"num_train_timesteps": 10}, num_class_embeds=3)
    images, classes = pictures(70), torch.arange(70) % 3
    shown = reconstruction(pipeline, images, class_labels=classes).tensors["images"]
    for label in range(3):
        expected = reconstruction(pipeline, images[classes == label], class_labels=label).tensors["images"]
        torch.testing.assert_close(shown[:, classes == label], expected, atol=1e-3, rtol=0)
        assert (shown[:, classes != label] - expected[:, :1]).abs().max() > 0.01


def test_clipping_on_the_way_back_is_a_loss(gaussian, pictures):
    """A network that takes images for brighter than they can be: `invert` did not clip what it saw, `step` does."""
    pipeline = gaussian(mean=1.2, clip_sample=True)
    numbers = reconstruction(pipeline, pictures(8, mean=0.7)).numbers
    assert numbers["mse"][-1] < 0.5 * numbers["mse_clipped"][-1]
    assert pipeline.scheduler.config["clip_sample"]  # its own scheduler stayed as it was
