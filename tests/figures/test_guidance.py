"""The same noise at growing scales: what a row is, and that every scale moves each image towards its class."""

import pytest
import torch

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.figures import guidance
from hf_ddpm.sampling import sample_images

S = 0.2  # of the pixels
SCHEDULE = {"num_train_timesteps": 40, "beta_schedule": "cosine"}


@pytest.fixture
def brightness(make_gaussian_pipeline, make_classifier):
    """Gaussian pixels, and a classifier that looks at how bright the expected x_0 is."""
    own = make_gaussian_pipeline(0.0, S, **SCHEDULE)
    classifier = make_classifier(SCHEDULE, num_classes=2, id2label={0: "dark", 1: "bright"})

    class Tilts(type(classifier)):
        def forward(self, sample, timestep):
            abar = own.scheduler.alphas_cumprod[int(timestep)].to(sample.dtype)
            x_0 = sample * abar.sqrt() * S**2 / (abar * S**2 + 1 - abar)  # E[x_0 | x_t]
            tilt = x_0.flatten(1).sum(1, keepdim=True)
            return type("Output", (), {"logits": torch.cat([-tilt, tilt], dim=1) * 3})

    classifier.__class__ = Tilts
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, classifier=classifier)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_first_row_is_what_sample_draws_and_scales_move_every_column_to_its_class(brightness):
    shown = guidance(brightness, seed=3, num_images=4, eta=0.0, scales=[0, 1, 4]).tensors
    assert shown["scales"].tolist() == [0, 1, 4] and shown["labels"].tolist() == [0, 1, 0, 1]
    drawn = sample_images(brightness, range(4), seed=3, eta=0.0, classifier_scale=0.0)
    for row, image in zip(tiles_of(shown["samples"][0]), drawn, strict=True):
        assert row == image.tobytes()
    means = shown["samples"].mean((2, 3, 4))  # (scales, columns)
    steps = means.diff(dim=0) * torch.tensor([-1, 1, -1, 1])
    assert (steps > 0.01).all()


def tiles_of(images):
    return [((x[0] + 1) * 127.5).round().byte().numpy().tobytes() for x in images]


def test_one_class_for_all_and_the_usual_scales(brightness):
    figure = guidance(brightness, num_images=3, steps=2, class_label="bright")
    assert figure.tensors["samples"].shape == (5, 3, 1, 8, 8)
    assert figure.tensors["labels"].tolist() == [1, 1, 1]
    assert figure.tensors["scales"].tolist() == [0, 1, 2, 4, 8]
    narrow = guidance(brightness, num_images=3, steps=2, class_label="bright", scales=[0]).picture
    assert figure.picture.height > 4 * narrow.height - 4 * 40  # a row for each scale


def test_without_a_classifier_the_scale_is_that_of_two_predictions(make_pipeline):
    own = make_pipeline(SCHEDULE, num_class_embeds=4)
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, null_class=3)
    shown = guidance(pipeline, num_images=2, steps=3).tensors
    assert shown["scales"].tolist() == [1, 1.25, 1.5, 2, 4]
    drawn = sample_images(pipeline, range(2), seed=0, num_inference_steps=3, guidance_scale=1.5)
    for row, image in zip(tiles_of(shown["samples"][2]), drawn, strict=True):
        assert row == image.tobytes()
    assert not torch.equal(shown["samples"][0], shown["samples"][2])


def test_what_makes_no_figure(make_pipeline, brightness):
    with pytest.raises(UserError, match="this model has no guidance: use a classifier, or a network"):
        guidance(make_pipeline(num_class_embeds=3))
    with pytest.raises(UserError, match="65 samples are too many for a readable figure"):
        guidance(brightness, num_images=65)
