"""One object answers what a network takes and returns, in the words of whoever asks."""

import pytest
import torch

from hf_ddpm import HFDDPMScheduler, unet_preset
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.pipelines.network_signature import NetworkSignature


def signature(scheduler=None, **unet):
    return NetworkSignature.of(unet_preset("tiny", **unet).config, HFDDPMScheduler(**(scheduler or {})).config)


def test_it_is_read_from_the_configs_and_nothing_else():
    plain = signature()
    assert (plain.channels, plain.out_channels, plain.size, plain.num_timesteps) == (1, 1, (8, 8), 1000)
    assert (plain.takes_labels, plain.num_classes, plain.null_class) == (False, None, None)
    learned = signature(
        {"variance_type": "learned_range", "num_train_timesteps": 7}, out_channels=2, num_class_embeds=3
    )
    assert (learned.learns_variance, learned.read_channels, learned.num_timesteps) == (True, 2, 7)
    assert (learned.takes_labels, learned.num_classes) == (True, 3)
    assert signature(sample_size=(8, 16)).size == (8, 16) and signature(sample_size=None).size is None


def test_a_pipeline_has_the_signature_of_its_parts_as_they_are_now(make_pipeline):
    pipeline = make_pipeline(num_class_embeds=4)
    assert pipeline.signature == NetworkSignature.of(pipeline.unet.config, pipeline.scheduler.config)
    pipeline.scheduler = HFDDPMScheduler(num_train_timesteps=30)
    assert pipeline.signature.num_timesteps == 30


def test_another_schedulers_config_has_no_variance():
    from diffusers import EulerDiscreteScheduler

    of = NetworkSignature.of(unet_preset("tiny", out_channels=2).config, EulerDiscreteScheduler().config)
    assert not of.learns_variance and of.read_channels == 1
    of.check_variances()


def test_a_network_without_a_size_has_no_shape_and_the_remedy_is_the_callers():
    assert signature(sample_size=(8, 16)).shape("") == (1, 8, 16)
    with pytest.raises(ValueError, match="the network's config has no sample_size: pass latents"):
        signature(sample_size=None).shape("pass latents")


def test_a_table_of_time_embeddings_has_a_row_for_each_timestep(make_pipeline):
    tabled = {"time_embedding_type": "learned", "num_train_timesteps": 20}
    assert make_pipeline({"num_train_timesteps": 20}, **tabled).signature.num_timesteps == 20
    with pytest.raises(
        ValueError, match=r"a table of 20 time embeddings .* and the scheduler has 1000 timesteps: both"
    ):
        make_pipeline(**tabled)


@pytest.mark.parametrize("steps", [0, 8, 3.0, "3", None])
def test_steps_are_from_1_to_T_in_the_words_of_the_caller(steps):
    seven = signature({"num_train_timesteps": 7})
    with pytest.raises(
        ValueError, match=f"num_inference_steps={steps!r} must be a whole number from 1 to 7, the number"
    ):
        seven.check_steps(steps)
    with pytest.raises(ValueError, match="--steps x must be from 1 to 7, the number of steps in training"):
        seven.check_steps(steps, "--steps x must be")
    for good in (1, 7):
        seven.check_steps(good)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, "trained with 3 classes: pass the classes"),
        (3, r"the classes 3\.\.3 must lie within 0\.\.2"),
        ([0, -1], r"the classes -1\.\.0 must lie within 0\.\.2"),
        ([0], "of shape .1,. do not fit batch_size=2"),
        (0.5, "the classes=0.5 must be whole numbers"),
        ("0", "the classes='0' must be whole numbers"),
    ],
)
def test_labels_that_are_none_of_the_networks(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        signature(num_class_embeds=3).labels(labels, 2, "the classes")


def test_labels_become_one_for_each_image():
    three = signature(num_class_embeds=3)
    assert three.labels(2, 4).tolist() == [2] * 4
    assert three.labels([0, 2], 2).tolist() == three.labels(torch.tensor([0, 2]), 2).tolist() == [0, 2]
    assert signature().labels(None, 2) is None
    with pytest.raises(ValueError, match="class_labels must be omitted: this network was trained without classes"):
        signature().labels(0, 2)


def test_labels_of_a_network_that_does_not_count_them_are_any_whole_numbers():
    free = signature(class_embed_type="timestep")
    assert free.takes_labels and free.num_classes is None
    assert free.labels(1000, 2).tolist() == [1000, 1000]
    free.check_class(1000, "--class 1000")
    with pytest.raises(ValueError, match="trained with classes: pass class_labels"):
        free.labels(None, 2)


def test_classes_in_turn():
    assert signature(num_class_embeds=3).classes_in_turn(range(1, 6)) == [1, 2, 0, 1, 2]
    assert signature(num_class_embeds=3).classes_in_turn(range(2), 1) == [1, 1]
    assert signature().classes_in_turn(range(2)) is None


def test_a_class_is_refused_in_the_words_of_the_caller():
    signature(num_class_embeds=3).check_class(2, "--class 2")
    with pytest.raises(ValueError, match="--class 3 must be from 0 to 2, the network's classes"):
        signature(num_class_embeds=3).check_class(3, "--class 3")
    with pytest.raises(ValueError, match="--class 0 must be omitted: this network was trained without classes"):
        signature().check_class(0, "--class 0")


@pytest.mark.parametrize(("size", "pair"), [(8, (8, 8)), ([8, 16], (8, 16)), ((8, 16), (8, 16))])
def test_a_size_is_a_number_or_a_pair(size, pair):
    assert size_pair(size) == pair


@pytest.mark.parametrize("size", [None, "28", 8.0, [8], (8, 8, 8), (8, "8")])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match=r"sample_size must be one whole number or \(height, width\), not"):
        size_pair(size)
