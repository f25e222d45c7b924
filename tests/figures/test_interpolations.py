"""Interpolations end in what `vary` makes of the ends, and are coarser the more noise they pass through."""

import pytest
import torch

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.figures import coarse_to_fine, ddim_interpolation, interpolation, rate_distortion, reconstruction
from hf_ddpm.pipelines import slerp
from hf_ddpm.sampling import image_generator


def own(count):
    return [image_generator(0, i) for i in range(count)]


def test_the_ends_are_vary_of_the_ends_and_between_is_interpolate(make_pipeline, pictures):
    pipeline, images = make_pipeline({"num_train_timesteps": 40}), pictures(4)
    shown = interpolation(pipeline, images, steps=20).tensors["images"]
    for end, sources in ((0, images[::2]), (-1, images[1::2])):
        varied = pipeline.vary(sources, 19, generator=own(2), num_inference_steps=20, output_type="pt").images
        torch.testing.assert_close(shown[end], varied * 2 - 1, atol=1e-4, rtol=0)
    weights = [i / 10 for i in range(11)]
    sampling = {"generator": own(2), "num_inference_steps": 20, "output_type": "pt"}
    expected = torch.stack(pipeline.interpolate(images[::2], images[1::2], weights, 19, **sampling))
    torch.testing.assert_close(shown, expected * 2 - 1, atol=1e-4, rtol=0)
    assert (shown[0] - shown[-1]).abs().max() > 0.01


def test_less_noise_keeps_more_of_what_the_ends_differ_in(gaussian, pictures):
    figure = coarse_to_fine(gaussian(), pictures(2))
    t, images = figure.tensors["t"].tolist(), figure.tensors["images"]
    assert t == [100, 88, 75, 62, 50, 38, 25, 12, 0]
    differ = (images[:, 0] - images[:, -1]).square().mean(dim=(1, 2, 3)).tolist()
    assert differ == sorted(differ)
    assert differ[0] < 1e-3 * differ[-1]


def test_at_t_0_the_images_themselves_are_mixed(gaussian, pictures):
    images = pictures(2)
    shown = coarse_to_fine(gaussian(), images).tensors["images"][-1]
    torch.testing.assert_close(shown[3], 0.7 * images[0] + 0.3 * images[1])


def test_ddim_interpolation_runs_between_two_samples_on_the_sphere(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 40})
    figure = ddim_interpolation(pipeline, num_images=2, steps=10)
    shown, x_T = figure.tensors["images"], figure.tensors["x_T"]
    samples = pipeline(4, 10, eta=0.0, generator=own(4), output_type="pt").images * 2 - 1
    torch.testing.assert_close(shown[0], samples[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(shown[-1], samples[1::2], atol=1e-5, rtol=0)
    for weight, mix in zip(figure.tensors["weights"].tolist(), x_T, strict=True):
        torch.testing.assert_close(mix, slerp(x_T[0], x_T[-1], weight))
    assert not torch.allclose(shown[5], shown[0], atol=1e-2)


def test_the_motion_goes_there_and_back(make_pipeline):
    figure = ddim_interpolation(make_pipeline({"num_train_timesteps": 40}), num_images=1, steps=3, motion=True)
    frames = [frame.tobytes() for frame in figure.frames]
    assert len(frames) == 60
    assert frames[1:30] == frames[:30:-1] and frames[0] != frames[30]


def test_images_without_a_partner(make_pipeline, pictures):
    pipeline = make_pipeline({"num_train_timesteps": 20})
    for count in (1, 3):
        with pytest.raises(UserError, match=f"the number of images is {count}, but pairs need"):
            interpolation(pipeline, pictures(count))


def test_a_mix_has_the_class_of_the_nearer_image(make_pipeline, pictures):
    pipeline, images = make_pipeline({"num_train_timesteps": 40}, num_class_embeds=3), pictures(4)
    shown = interpolation(pipeline, images, steps=20, class_labels=torch.tensor([0, 1, 2, 0])).tensors["images"]
    sampling = {"generator": own(2), "num_inference_steps": 20, "output_type": "pt"}
    for classes, weights, part in (([0, 2], [0.0, 0.4], [0, 4]), ([1, 0], [0.5, 1.0], [5, 10])):
        expected = pipeline.interpolate(images[::2], images[1::2], weights, 19, class_labels=classes, **sampling)
        torch.testing.assert_close(shown[part], torch.stack(expected) * 2 - 1, atol=1e-4, rtol=0)
    pair = coarse_to_fine(pipeline, images[:2], steps=20, class_labels=[0, 1]).tensors["images"]
    torch.testing.assert_close(pair[4], shown[:, 0], atol=1e-4, rtol=0)  # t = T / 2
    more = coarse_to_fine(pipeline, images, steps=20, class_labels=[0, 1, 2, 0]).tensors["images"]
    assert torch.equal(more, pair)


def test_one_class_for_all_mixes(make_pipeline, pictures):
    pipeline, images = make_pipeline({"num_train_timesteps": 40}, num_class_embeds=3), pictures(4)
    same, one = (interpolation(pipeline, images, steps=5, class_labels=c).tensors["images"] for c in ([1] * 4, 1))
    assert torch.equal(same, one)
    with pytest.raises(UserError, match="the number of class_labels is 3, but the number of images is 4"):
        interpolation(pipeline, images, class_labels=[0, 1, 2])


def test_classes_by_name_and_none_that_stands_for_no_label(make_pipeline, pictures):
    own = make_pipeline({"num_train_timesteps": 40}, num_class_embeds=4)
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, null_class=3, id2label={0: "cat", 1: "dog", 2: "hen"})
    pipeline.set_progress_bar_config(disable=True)
    images, names, numbers = pictures(4), ["cat", "dog", "hen", "cat"], [0, 1, 2, 0]
    for draw in (interpolation, coarse_to_fine):
        same, one = (draw(pipeline, images, steps=5, class_labels=c).tensors["images"] for c in (names, numbers))
        assert torch.equal(same, one)
    named, numbered = (ddim_interpolation(pipeline, num_images=2, steps=3, class_label=c) for c in ("dog", 1))
    assert torch.equal(named.tensors["images"], numbered.tensors["images"])
    with pytest.raises(UserError, match="class_labels='dgo' is not the name of a class; did you mean 'dog'"):
        interpolation(pipeline, images, class_labels="dgo")
    many = torch.ones(256, 1, 8, 8)
    for draw, given in ((interpolation, images), (reconstruction, images), (rate_distortion, many)):
        with pytest.raises(ValueError, match='stands for "no label" and is never drawn'):
            draw(pipeline, given, class_labels=3)
