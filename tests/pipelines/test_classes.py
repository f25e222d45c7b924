"""Classes by their names, and the class of a network that stands for no label, through every door."""

import json

import numpy as np
import pytest
import torch

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.pipelines.network_signature import NetworkSignature, names_of_classes
from hf_ddpm.sampling import sample_images

NAMES = {0: "cat", 1: "dog", 2: "great white shark"}
DOOR_3 = """
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
print(pipeline.num_classes, pipeline.signature.null_class, len(pipeline.config.id2label))
call = dict(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np")
np.save({out!r}, pipeline(2, class_labels={label!r}, **call).images)
for wrong in ({wrong!r}, pipeline.signature.null_class):
    try:
        pipeline(1, 1, class_labels=wrong)
    except ValueError as error:
        print(error)
"""


@pytest.fixture
def make_classes(make_pipeline):
    """(null_class, id2label, UNet keywords) -> pipeline."""

    def make(null_class=None, id2label=None, **unet):
        network = make_pipeline(**unet).unet
        pipeline = HFDDPMPipeline(network, HFDDPMScheduler(), null_class=null_class, id2label=id2label)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def signature(null_class=None, id2label=None, num_class_embeds=3):
    unet = unet_preset("tiny", num_class_embeds=num_class_embeds).config
    names = names_of_classes(id2label, unet, null_class)
    return NetworkSignature.of(unet, HFDDPMScheduler().config, null_class, names)


def draw(pipeline, label):
    call = {"generator": torch.Generator().manual_seed(0), "output_type": "np"}
    return pipeline(2, 3, class_labels=label, **call).images


def test_the_class_for_no_label_is_neither_counted_nor_drawn_nor_accepted():
    three = signature(null_class=3, num_class_embeds=4)
    assert (three.num_classes, three.null_class, three.takes_labels) == (3, 3, True)
    assert three.classes_in_turn(range(5)) == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match=r'class_labels 3\.\.3 must lie within 0\.\.2, .* \(3 stands for "no label"'):
        three.labels(3, 2)
    with pytest.raises(ValueError, match=r'--class 3 must be from 0 to 2, .* \(3 stands for "no label" and is never'):
        three.class_of_word("3", "--class 3")
    assert signature(num_class_embeds=4).num_classes == 4  # never inferred


@pytest.mark.parametrize(
    ("null_class", "embedded", "allowed"),
    [(3, None, "None"), (2, 4, "None or 3"), (4, 4, "None or 3"), (0, 1, "None"), (True, 2, "None or 1"), ("3", 4, "")],
)
def test_a_class_for_no_label_that_is_not_the_last(null_class, embedded, allowed, make_classes):
    sentence = f"does not fit a network with num_class_embeds={embedded}: .* so pass {allowed}"
    with pytest.raises(ValueError, match=sentence):
        make_classes(null_class, num_class_embeds=embedded)


def test_labels_by_name():
    three = signature(id2label=NAMES)
    assert three.labels("dog", 2).tolist() == [1, 1]
    assert three.labels(["cat", 2, "great white shark"], 3).tolist() == [0, 2, 2]
    assert three.labels(("cat", "dog"), 2).tolist() == [0, 1]
    assert three.classes_in_turn(range(2), "dog") == [1, 1]
    assert three.class_of_word("dog", "--class dog") == three.class_of_word("1", "--class 1") == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dgo", "class_labels='dgo' is not the name of a class; did you mean 'dog'?"),
        ("SHARK", "class_labels='SHARK' is not the name of a class; did you mean 'great white shark'?"),
        ("", "class_labels='' is not the name of a class; the names are 'cat', 'dog', 'great white shark'"),
        (
            ["cat", "1"],
            "'1' in class_labels is not the name of a class; the names are 'cat', 'dog', 'great white shark'",
        ),
    ],
)
def test_a_name_that_no_class_has(name, sentence):
    with pytest.raises(ValueError) as caught:
        signature(id2label=NAMES).labels(name, 2)
    assert str(caught.value) == sentence


def test_names_that_are_numbers_of_other_classes():
    shifted = signature(id2label={0: "1", 1: "2", 2: "3"})
    assert shifted.labels("1", 1).tolist() == [0]  # in a call a string is a name and a number an index
    assert shifted.labels(1, 1).tolist() == [1]
    assert shifted.class_of_word("1", "--class 1") == 0  # a word is a name, if a class has it
    assert shifted.class_of_word("0", "--class 0") == 0  # else a number
    with pytest.raises(ValueError, match="class_labels='0' is not the name of a class"):
        shifted.labels("0", 1)
    with pytest.raises(ValueError, match="--class 4 must be from 0 to 2"):
        shifted.class_of_word("4", "--class 4")


def test_a_name_of_two_classes_is_asked_for_by_number():
    cranes = signature(id2label={0: "crane", 1: "dog", 2: "crane"})
    with pytest.raises(ValueError, match="class_labels='crane' is the name of the classes 0 and 2: pass the number"):
        cranes.labels("crane", 1)
    assert cranes.class_of_word("2", "--class 2") == 2


@pytest.mark.parametrize("labels", ["dog", ["dog", 1], ("dog",)])
def test_names_where_the_checkpoint_has_none(labels):
    said = "must be whole numbers: this checkpoint has no class names"
    with pytest.raises(ValueError, match=said):
        signature().labels(labels, 2)
    with pytest.raises(ValueError, match=said):
        signature().numbers(labels)


def test_words_for_a_network_without_names():
    assert signature().class_of_word("2", "--class 2") == 2
    with pytest.raises(ValueError, match="--class dog must be from 0 to 2: this checkpoint has no class names"):
        signature().class_of_word("dog", "--class dog")
    with pytest.raises(ValueError, match="--class dog must be omitted: this network was trained without classes"):
        signature(num_class_embeds=None).class_of_word("dog", "--class dog")


@pytest.mark.parametrize(
    ("id2label", "sentence"),
    [
        ({0: 1}, "must map classes to names"),
        (["cat"], "must map classes to names"),
        ({"x": "cat"}, "has a name for 'x': use one for each class from 0 to 2"),
        ({-1: "cat"}, "has a name for -1"),
        ({3: "none"}, "has a name for 3"),
        ({1: "cat", "1": "dog"}, "has a name for '1'"),
    ],
)
def test_what_names_no_class(id2label, sentence, make_classes):
    with pytest.raises(ValueError, match=sentence):
        make_classes(null_class=3, id2label=id2label, num_class_embeds=4)


def test_names_for_a_network_without_classes(make_classes):
    with pytest.raises(ValueError, match="id2label must be omitted: this network was trained without classes"):
        make_classes(id2label=NAMES)
    assert make_classes(id2label={}).config["id2label"] is None


def test_doors_1_and_3_open_names_and_the_class_for_no_label(make_classes, run_python, tmp_path):
    pipeline, folder = make_classes(3, NAMES, num_class_embeds=4), tmp_path / "checkpoint"
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["null_class"], index["id2label"]) == (3, {str(k): name for k, name in NAMES.items()})
    opened = HFDDPMPipeline.from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)
    assert (opened.num_classes, opened.config["null_class"], opened.config["id2label"]) == (3, 3, NAMES)
    assert (draw(opened, "dog") == draw(pipeline, 1)).all()
    code = DOOR_3.format(folder=str(folder), out=str(tmp_path / "3.npy"), label="dog", wrong="dgo")
    said = run_python(code, without_hf_ddpm=True).stdout.splitlines()
    assert said[0] == "3 3 3" and "did you mean 'dog'?" in said[1] and 'stands for "no label"' in said[2]
    assert np.array_equal(np.load(tmp_path / "3.npy"), draw(pipeline, 1))


def test_door_2_stays_open_without_classes_and_its_index_says_nothing_of_them(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline" and not index.keys() & {"null_class", "id2label", "default_eta"}


def test_an_index_of_before_opens_as_before(make_pipeline, tmp_path):
    make_pipeline(num_class_embeds=4).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for key in ("null_class", "id2label"):
        del index[key]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    opened = HFDDPMPipeline.from_pretrained(tmp_path)
    assert (opened.num_classes, opened.signature.null_class, opened.signature.id2label) == (4, None, None)
    assert opened.signature.classes_in_turn(range(4)) == [0, 1, 2, 3]


def test_a_class_for_no_label_that_does_not_fit_the_saved_network(make_classes, tmp_path):
    make_classes(3, num_class_embeds=4).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"null_class": 2}))
    with pytest.raises(ValueError, match="null_class=2 does not fit a network with num_class_embeds=4"):
        HFDDPMPipeline.from_pretrained(tmp_path)


def test_21000_names_open_by_doors_1_and_3_and_one_of_them_is_drawn(make_classes, run_python, tmp_path):
    names = {k: f"synset {k}" for k in range(21000)}
    pipeline, folder = make_classes(21000, names, num_class_embeds=21001), tmp_path / "checkpoint"
    pipeline.save_pretrained(folder)
    opened = HFDDPMPipeline.from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)
    assert opened.config["id2label"] == names and opened.num_classes == 21000
    expected = draw(pipeline, 20999)
    assert (draw(opened, "synset 20999") == expected).all()
    (image,) = sample_images(opened, [0], seed=0, num_inference_steps=2, class_label="synset 7")
    (same,) = sample_images(opened, [0], seed=0, num_inference_steps=2, class_label=7)
    assert image.tobytes() == same.tobytes()
    code = DOOR_3.format(folder=str(folder), out=str(tmp_path / "3.npy"), label="synset 20999", wrong="synset 21000")
    assert run_python(code, without_hf_ddpm=True).stdout.startswith("21000 21000 21000\n")
    assert np.array_equal(np.load(tmp_path / "3.npy"), expected)


@pytest.mark.parametrize("method", ["call", "invert", "reconstruct", "vary", "inpaint", "interpolate", "score"])
def test_every_method_takes_names_and_refuses_the_class_for_no_label(method, make_classes):
    pipeline = make_classes(3, NAMES, num_class_embeds=4)
    x = torch.zeros(2, 1, 8, 8)

    def run(label):
        walk = {"num_inference_steps": 2, "class_labels": label}
        drawn = walk | {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        match method:
            case "call":
                return pipeline(2, **drawn).images
            case "invert":
                return pipeline.invert(x, **walk)
            case "reconstruct":
                return pipeline.reconstruct(x, **walk, output_type="pt").images
            case "vary":
                return pipeline.vary(x, 500, **drawn).images
            case "inpaint":
                return pipeline.inpaint(x, torch.ones(1, 1, 8, 8), num_resamples=1, **drawn).images
            case "interpolate":
                return pipeline.interpolate(x, x, [0.5], 500, **drawn)[0]
            case _:
                return pipeline.score(x, 5, label)

    assert torch.equal(run(["cat", "dog"]), run([0, 1]))
    assert not torch.equal(run("cat"), run("dog"))
    with pytest.raises(ValueError, match='stands for "no label"'):
        run(3)
