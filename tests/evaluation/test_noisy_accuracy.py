"""The accuracy of a noisy classifier: against a count by hand, in closed form, and the classes of other data."""

import math

import pytest
import torch
from image_files import write_folder

from hf_ddpm import HFVAE, HFDDPMScheduler, classifier_preset
from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.noisy_accuracy import accuracy_record, noisy_accuracy
from hf_ddpm.evaluation.report import described, markdown
from hf_ddpm.model_card_metrics import entries_of
from hf_ddpm.sampling import image_generator

T = 12


@pytest.fixture(scope="module")
def digits():
    return ImageData(image_size=8, label_column="auto", max_images=40)


def tiny(**keywords):
    torch.manual_seed(0)
    classifier = classifier_preset("tiny", **{"noise_schedule": {"num_train_timesteps": T}, **keywords})
    for weight in classifier.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return classifier


def values(found):
    return {number["name"]: number["value"] for number in found["numbers"]}


def test_it_is_what_a_count_by_hand_finds(digits):
    classifier, scheduler = tiny().eval(), HFDDPMScheduler(T)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    right, nats = {"top-1": [], "top-5": []}, []
    for i in range(50):  # ten images are seen twice
        generator, row = image_generator(3, i), rows[[i % 40]]
        t = torch.randint(T, (), generator=generator)
        noise = torch.randn(1, 8, 8, generator=generator)
        abar = scheduler.alphas_cumprod[t].float()
        x_t = abar.sqrt() * (digits.pixels(row).float() / 127.5 - 1) + (1 - abar).sqrt() * noise
        log_p = classifier(x_t, t).logits[0].detach().log_softmax(0)
        label = int(digits.labels(row))
        order = log_p.argsort(descending=True).tolist()
        right["top-1"].append((int(t) // 3, label == order[0]))
        right["top-5"].append((int(t) // 3, label in order[:5]))
        nats.append(-float(log_p[label]))
    expected = {"-log p(y | x_t, t) in nats": sum(nats) / 50}
    for name, found in right.items():
        expected[f"{name} accuracy, all t"] = sum(hit for _, hit in found) / 50
        for q in range(4):
            hits = [hit for quartile, hit in found if quartile == q]
            expected[f"{name} accuracy, quartile {q + 1} of t"] = sum(hits) / len(hits)
    for batch_size in (64, 7):
        found = noisy_accuracy(classifier, digits, num_images=50, seed=3, batch_size=batch_size)
        assert values(found) == pytest.approx(expected, rel=1e-4)
    share = expected["top-1 accuracy, all t"]
    (error,) = (n["standard_error"] for n in found["numbers"] if n["name"] == "top-1 accuracy, all t")
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 50))


def test_a_classifier_of_latents_sees_them_as_in_training():
    """z = mu + sigma eps times the scale, by hand; eps of an image comes after its t and before its noise."""
    images = ImageData(image_size=16, label_column="auto", max_images=20)
    torch.manual_seed(0)
    levels = {"network": "conv", "block_out_channels": (8, 8), "latent_channels": 2}
    vae = HFVAE(sample_size=16, likelihood="gaussian_fixed", scaling_factor=1.7, **levels).eval()
    classifier, scheduler = tiny(in_channels=2).eval(), HFDDPMScheduler(T)
    rows, nats = torch.randperm(20, generator=torch.Generator().manual_seed(3)), []
    for i, row in enumerate(rows):
        generator = image_generator(3, i)
        t = torch.randint(T, (), generator=generator)
        q = vae.encode(images.pixels(row[None]).float() / 127.5 - 1).latent_dist
        x_0 = 1.7 * (q.mean + q.std * torch.randn(2, 8, 8, generator=generator))
        x_t = scheduler.add_noise(x_0, torch.randn(1, 2, 8, 8, generator=generator), t)
        nats.append(-float(classifier(x_t, t).logits[0].detach().log_softmax(0)[images.labels(row)]))
    found = values(noisy_accuracy(classifier, images, seed=3, batch_size=7, vae=vae))
    assert found["-log p(y | x_t, t) in nats"] == pytest.approx(sum(nats) / 20, rel=1e-4)


def test_a_classifier_that_knows_nothing_has_log_k_nats(digits):
    classifier = classifier_preset("tiny", pool="adaptive", noise_schedule={"num_train_timesteps": T})
    found = values(noisy_accuracy(classifier, digits))
    assert found["-log p(y | x_t, t) in nats"] == pytest.approx(math.log(10), rel=1e-6)
    zeros = float((digits.labels(torch.arange(40)) == 0).float().mean())
    assert found["top-1 accuracy, all t"] == pytest.approx(zeros)
    assert classifier.training  # as it was


def test_the_record_is_what_a_card_reads(digits):
    record = accuracy_record(tiny(), digits, {"kind": "noisy classifier"}, num_images=30, seed=2)
    assert described(record) == "30 noisy images of digits, split train, t drawn uniformly from 0 .. 11, seed 2."
    entries = entries_of(record)
    assert [entry["type"] for entry in entries[:3]] == ["cross_entropy", "top_1_accuracy", "top_1_accuracy_q1"]
    assert entries[0]["data"]["source"] == "digits" and entries[0]["how"] == described(record)
    assert "| top-1 accuracy, all t |" in markdown(record)


def test_classes_are_found_by_their_names(tmp_path):
    """A part of the classes has other numbers in the data; their names say which they are."""
    images = ImageData(
        str(write_folder(tmp_path, 8, ("cat", "dog"))), image_size=8, channels=1, label_column="auto", split="train"
    )
    by_number = tiny(num_classes=2, id2label={0: "cat", 1: "dog"})
    by_name = tiny(num_classes=2, id2label={0: "dog", 1: "cat"})
    one, other = values(noisy_accuracy(by_number, images)), values(noisy_accuracy(by_name, images))
    assert one["top-1 accuracy, all t"] == pytest.approx(1 - other["top-1 accuracy, all t"])
    sentence = "have a class 'dog', which is not one of the classifier's 2 classes; did you mean dogs"
    with pytest.raises(UserError, match=sentence):
        noisy_accuracy(tiny(num_classes=2, id2label={0: "cat", 1: "dogs"}), images)
    with pytest.raises(UserError, match="have a class '2', which is not one of the classifier's 2"):
        noisy_accuracy(tiny(num_classes=2), ImageData(image_size=8, label_column="auto", max_images=4))


def test_what_cannot_be_measured_is_a_sentence(digits):
    with pytest.raises(UserError, match="have no labels, which accuracy needs"):
        noisy_accuracy(tiny(), ImageData(image_size=8, max_images=4))
    with pytest.raises(UserError, match="has no noise_schedule"):
        noisy_accuracy(tiny(noise_schedule=None), digits)
