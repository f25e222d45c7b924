"""The page of `hf-ddpm demo` and of a Space, in a real headless Chromium: `make test-browser`."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from copy import copy
from pathlib import Path

import pytest
import torch
from conftest import WITHOUT_HF_DDPM
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image, ImageChops

from hf_ddpm import HFVAE, HFDDGANPipeline, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.models import generator_preset
from hf_ddpm.pipelines.interpolation import slerp
from hf_ddpm.sampling import image_generator, sample_gan, sample_images, sample_latents, use_default_sampler
from hf_ddpm.space.files import find_checkpoint, space_files, write_space

pytestmark = pytest.mark.browser
DEMO = """
import argparse
from hf_ddpm.commands import demo
parser = argparse.ArgumentParser()
demo.add_options(parser)
demo.run(parser.parse_args())
"""
AUDIT = """
import sys
def tell(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = place[0] if isinstance(place, tuple) else place
        if host not in (None, "127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
            print("CALLS", host)
sys.addaudithook(tell)
"""
OUTSIDE = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # for Chromium: there is no other host


@pytest.fixture
def app():
    """The page's module, which needs gradio."""
    from hf_ddpm.space import app

    return app


@pytest.fixture
def serve(tmp_path):
    """(code, words) -> the address of the page that the code serves in a process of its own, which may call no host."""
    processes = []

    def start(code, *words, cwd=tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "OMP_NUM_THREADS": "1"}
        own["HF_MODULES_CACHE"] = str(tmp_path / "modules")
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", AUDIT + code, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=os.environ | own,
        )
        said = []
        processes.append((process, said))
        for line in process.stdout:
            said.append(line)
            if f"http://127.0.0.1:{port}" in line:
                return f"http://127.0.0.1:{port}"
        raise AssertionError("".join(said))

    yield start
    for process, before in processes:
        process.terminate()
        said = "".join(before) + process.communicate(timeout=30)[0]
        assert "Traceback" not in said and "CALLS" not in said, said


class Page:
    """One page in a browser: what a user does and sees."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder

    def open(self, address):
        self.address = address
        self.driver.get(address)
        self.wait(lambda: self.all("#sample-draw"))

    def wait(self, seen):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda _: seen())

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def tabs(self):
        return [tab.text for tab in self.all("button[role=tab]")]

    def choose_tab(self, name):
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()
        its_button = f"[id^={name.lower()[:6]}][id$=-draw]"  # denoise-draw, in the tab Denoising
        self.wait(lambda: self.all(its_button)[0].is_displayed())

    def field(self, label):
        """The visible one of that label."""
        css = f'input[aria-label="{label}"], input[aria-label="number input for {label}"]'
        return next(field for field in self.all(css) if field.is_displayed())

    def write(self, label, value):
        """Into the field of that label; an empty word empties it."""
        from selenium.webdriver.common.keys import Keys

        field = self.field(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value) if value != "" else Keys.DELETE)
        field.send_keys(Keys.TAB)

    def images(self, css, count):
        """The `count` images there, when they have come, as they were sent."""
        found = self.wait(lambda: (images := self.all(f"{css} img")) and len(images) == count and images)
        return [fetch(image.get_attribute("src")) for image in found]

    def shot(self, name):
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))
        assert (self.folder / f"{name}.png").stat().st_size > 5000

    def requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def fetch(url):
    with urllib.request.urlopen(url) as response:
        return Image.open(io.BytesIO(response.read())).convert("RGB")


def same(first, second):
    return ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox() is None


@pytest.fixture
def page(tmp_path):
    """A browser; SCREENSHOTS names a folder that keeps what it saw."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, "there is no chromium: make test-browser installs it"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--host-resolver-rules={OUTSIDE}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield Page(browser, folder)
    browser.quit()


@pytest.fixture
def vae_pipeline():
    torch.manual_seed(0)
    vae = HFVAE(sample_size=8, hidden_sizes=(16,)).eval()
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return HFVAEPipeline(vae)


def by_default(pipeline, indices, seed, steps, **guidance):
    """The images of `hf-ddpm sample --steps`."""
    pipeline = copy(pipeline)
    walk = use_default_sampler(pipeline, steps)
    return list(sample_images(pipeline, indices, seed=seed, **walk, **guidance))


def test_a_user_draws_slides_and_interpolates(page, serve, make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "checkpoint")
    page.open(serve(DEMO, tmp_path / "checkpoint"))
    assert page.tabs() == ["Sample", "Denoising", "Interpolation"]

    page.write("Seed", 3)
    page.write("Steps", 10)
    page.all("#sample-draw")[0].click()
    drawn = page.images("#sample-images", 8)
    page.shot("sample")
    assert all(map(same, drawn, by_default(pipeline, range(8), seed=3, steps=10)))
    assert not same(drawn[0], drawn[1])

    page.choose_tab("Denoising")
    page.all("#denoise-draw")[0].click()
    (half_way,), (predicted,) = page.images("#denoise-x-t", 1), page.images("#denoise-x-0", 1)
    assert not same(half_way, predicted)
    from selenium.webdriver.common.keys import Keys

    slider = page.all("#denoise-at input[type=range]")[0]
    slider.send_keys(Keys.END)
    page.wait(lambda: "x_t, done" in page.driver.find_element("tag name", "body").text)
    (last,), (of_it,) = page.images("#denoise-x-t", 1), page.images("#denoise-x-0", 1)
    page.shot("denoising")
    assert not same(last, half_way)
    assert same(last, of_it)
    assert same(last, next(sample_images(pipeline, [0], seed=0, num_inference_steps=50, eta=0.0)))

    page.choose_tab("Interpolation")
    page.write("Number of images", 5)
    page.write("Steps", 10)
    page.all("#interpolate-draw")[0].click()
    between = page.images("#interpolate-images", 5)
    page.shot("interpolation")
    for image, seed in ((between[0], 0), (between[-1], 1)):
        assert same(image, next(sample_images(pipeline, [0], seed=seed, num_inference_steps=10, eta=0.0)))

    foreign = [url for url in page.requests() if not url.startswith((page.address, "data:", "blob:"))]
    assert foreign == []


def test_a_bad_value_is_a_sentence_and_the_page_goes_on(page, serve, make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "checkpoint")
    page.open(serve(DEMO, tmp_path / "checkpoint"))
    for seed, shown in (("-1", "Seed -1"), ("1.5", "Seed 1.5"), ("", "Seed (empty)")):
        page.write("Seed", seed)
        page.all("#sample-draw")[0].click()
        sentence = f"{shown} must be a whole number from 0 to 9007199254740991"
        page.wait(lambda sentence=sentence: sentence in page.driver.find_element("tag name", "body").text)
    page.shot("error")
    page.write("Seed", 0)
    page.write("Number of images", 65)
    page.wait(lambda: page.field("Number of images").get_attribute("value") == "64")  # the most
    page.write("Number of images", 8)
    page.write("Steps", 2)
    page.all("#sample-draw")[0].click()
    page.images("#sample-images", 8)


def test_a_space_runs_from_the_hub_without_hf_ddpm(hub, page, serve, make_pipeline, tmp_path):
    pipeline = make_pipeline(num_class_embeds=3)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    push_checkpoint(str(tmp_path / "checkpoint"), "ada/tiny")
    of_now = find_checkpoint("ada/tiny")
    make_pipeline(num_class_embeds=3, seed=1).save_pretrained(tmp_path / "later")
    push_checkpoint(str(tmp_path / "later"), "ada/tiny")  # which the Space does not see
    write_space(space_files(of_now), tmp_path / "space")
    run_app = "import runpy\nrunpy.run_path('app.py', run_name='__main__')"
    page.open(serve(WITHOUT_HF_DDPM + run_app, cwd=tmp_path / "space"))
    assert "ada/tiny" in page.driver.title
    page.write("Steps", 5)
    page.all("#sample-draw")[0].click()
    drawn = page.images("#sample-images", 8)
    page.shot("space")
    assert all(map(same, drawn, by_default(pipeline, range(8), seed=0, steps=5)))


def test_both_scales_guide_what_is_drawn(page, serve, make_pipeline, make_classifier, tmp_path):
    """Of a network with a class for "no label", and a classifier that is named beside it."""
    own, names = make_pipeline(num_class_embeds=4), {0: "dark", 1: "grey", 2: "bright"}
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, null_class=3, id2label=names)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    make_classifier(id2label=names).save_pretrained(tmp_path / "classifier")
    page.open(serve(DEMO, tmp_path / "checkpoint", "--classifier", tmp_path / "classifier"))
    guided = HFDDPMPipeline(**pipeline.components | {"classifier": make_classifier(id2label=names)}, null_class=3)
    guided.set_progress_bar_config(disable=True)
    page.write("Steps", 5)
    for scales in ((1, 1), (3, 1), (1, 0)):
        page.write("Guidance", scales[0])
        page.write("Classifier scale", scales[1])
        page.all("#sample-draw")[0].click()
        expected = by_default(guided, range(8), 0, 5, guidance_scale=scales[0], classifier_scale=scales[1])
        page.wait(lambda expected=expected: all(map(same, page.images("#sample-images", 8), expected)))
    page.shot("guidance")
    page.choose_tab("Interpolation")
    assert page.field("Guidance").get_attribute("value") == "1"


def test_a_space_brings_its_classifier(hub, page, serve, make_pipeline, make_classifier, tmp_path):
    own = make_pipeline()
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, classifier=make_classifier())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.push_to_hub("ada/guided")
    write_space(space_files(find_checkpoint("ada/guided")), tmp_path / "space")
    run_app = "import runpy\nrunpy.run_path('app.py', run_name='__main__')"
    page.open(serve(WITHOUT_HF_DDPM + run_app, cwd=tmp_path / "space"))
    assert not page.all('input[aria-label="Guidance"]')
    page.write("Steps", 5)
    page.all("#sample-draw")[0].click()
    drawn = page.images("#sample-images", 8)
    assert all(map(same, drawn, by_default(pipeline, range(8), seed=0, steps=5)))
    assert not all(map(same, drawn, by_default(pipeline, range(8), seed=0, steps=5, classifier_scale=0.0)))


def test_a_vae_has_samples_and_interpolations_only(page, serve, vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path / "checkpoint")
    page.open(serve(DEMO, tmp_path / "checkpoint"))
    assert page.tabs() == ["Sample", "Interpolation"]
    page.all("#sample-draw")[0].click()
    assert all(map(same, page.images("#sample-images", 8), sample_latents(vae_pipeline, range(8), seed=0)))
    page.choose_tab("Interpolation")
    page.all("#interpolate-draw")[0].click()
    between = page.images("#interpolate-images", 8)
    page.shot("vae")
    assert same(between[-1], next(sample_latents(vae_pipeline, [0], seed=1)))


# What needs gradio, and no browser.


def test_the_copies_in_the_app_are_those_of_the_package(app, make_pipeline):
    first, second = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 0.3, 1.0):
        assert torch.allclose(app.slerp(first, second, weight), slerp(first, second, weight))
        assert torch.allclose(app.slerp(first, first, weight), first)
    for seed, index in ((0, 0), (7, 63), (2**53 - 1, 1)):
        ours, theirs = app.image_generator(seed, index), image_generator(seed, index)
        assert torch.equal(torch.randn(4, generator=ours), torch.randn(4, generator=theirs))


def test_images_beyond_a_batch_are_those_of_the_command(app, make_pipeline):
    pipeline = make_pipeline(num_class_embeds=3)
    walk = {"num_inference_steps": 3, "eta": 1.0, "class_labels": -1}
    drawn = app.sample(pipeline, no_progress, walk, 5, 20)
    expected = sample_images(pipeline, range(20), seed=5, batch_size=20, num_inference_steps=3, eta=1.0)
    assert len(drawn) == 20
    assert all(map(same, drawn, expected))


def test_unipc_draws_what_the_command_draws(app, make_pipeline):
    """The pipeline keeps its own scheduler, and all steps of training are its own walk."""
    pipeline = make_pipeline({"num_train_timesteps": 8})
    walk = {"solver": "UniPC", "num_inference_steps": 3, "eta": 1.0}
    drawn = app.sample(pipeline, no_progress, dict(walk), 5, 4)
    assert all(map(same, drawn, by_default(pipeline, range(4), seed=5, steps=3)))
    assert type(pipeline.scheduler).__name__ == "HFDDPMScheduler"
    whole = app.sample(pipeline, no_progress, walk | {"num_inference_steps": 8}, 5, 4)
    assert all(map(same, whole, sample_images(pipeline, range(4), seed=5, num_inference_steps=8, eta=1.0)))
    own = app.sample(pipeline, no_progress, walk | {"solver": ""}, 5, 4)
    assert all(map(same, own, sample_images(pipeline, range(4), seed=5, num_inference_steps=3, eta=1.0)))


def test_frames_are_the_walk_and_end_in_the_image(app, make_pipeline):
    pipeline = make_pipeline()
    frames, slider, *_shown = app.denoise(pipeline, no_progress, {"num_inference_steps": 6, "eta": 1.0}, 2)
    assert len(frames["x_t"]) == len(frames["x_0"]) == len(frames["level"]) == 7
    assert (slider.maximum, slider.value) == (6, 3)
    assert frames["level"][-2:] == ["t = 0", "done"]
    (image,) = sample_images(pipeline, [0], seed=2, num_inference_steps=6, eta=1.0)
    assert same(frames["x_t"][-1], image)
    assert app.frame(frames, 0)[1:] == (frames["x_t"][0], frames["x_0"][0])


def test_in_latents_what_is_shown_is_decoded(app, make_pipeline):
    small = make_pipeline({"clip_sample": False}, sample_size=4, in_channels=2, out_channels=2)
    widths = {"network": "conv", "block_out_channels": (8, 8), "latent_channels": 2, "likelihood": "gaussian_fixed"}
    vae = HFVAE(sample_size=8, scaling_factor=0.7, **widths).eval()
    pipeline = HFDDPMPipeline(small.unet, small.scheduler, vae=vae)
    walk = {"num_inference_steps": 4, "eta": 0.0}
    frames = app.denoise(pipeline, no_progress, walk, 0)[0]
    assert {image.size for image in frames["x_t"] + frames["x_0"]} == {(8, 8)}
    (image,) = sample_images(pipeline, [0], seed=0, num_inference_steps=4, eta=0.0)
    assert same(frames["x_t"][-1], image)
    assert same(app.interpolate(pipeline, no_progress, walk, 0, 1, 2)[0], image)
    app.build(pipeline, "x")


def test_controls_are_those_that_the_checkpoint_has(app, make_pipeline, vae_pipeline):
    assert list(app.walk_controls(make_pipeline())) == ["num_inference_steps", "eta"]
    sampler = app.walk_controls(make_pipeline(), solver=True)
    assert list(sampler) == ["solver", "num_inference_steps", "eta"] and sampler["num_inference_steps"].value == 20
    assert "solver" not in app.walk_controls(make_pipeline({"prediction_type": "mean"}), solver=True)
    classes = app.walk_controls(make_pipeline(num_class_embeds=3), most_steps=100, in_turn=True)
    assert [value for _, value in classes["class_labels"].choices] == [-1, 0, 1, 2]
    assert classes["num_inference_steps"].maximum == 100
    assert app.walk_controls(vae_pipeline) == {}


def test_scales_are_offered_where_something_guides(app, make_pipeline, make_classifier, vae_pipeline):
    own, names = make_pipeline(num_class_embeds=4), {0: "dark", 2: "bright"}
    free = app.guidance_controls(HFDDPMPipeline(own.unet, own.scheduler, null_class=3))
    assert list(free) == ["guidance_scale"]
    assert (free["guidance_scale"].minimum, free["guidance_scale"].value, free["guidance_scale"].maximum) == (1, 1, 8)
    for silent in (own, make_pipeline(), vae_pipeline):
        assert app.guidance_controls(silent) == {}
    plain = make_pipeline()
    guided = HFDDPMPipeline(plain.unet, plain.scheduler, classifier=make_classifier(id2label=names))
    controls = app.walk_controls(guided, in_turn=True)
    assert controls["class_labels"].choices == [(app.IN_TURN, -1), ("dark", 0), ("1", 1), ("bright", 2)]
    scale = controls["classifier_scale"]
    assert (scale.minimum, scale.value, scale.maximum) == (0, 1, 10) and "guidance_scale" not in controls


def test_what_guides_goes_into_every_tab(app, make_pipeline, make_classifier):
    plain = make_pipeline({"prediction_type": "sample"})  # whose images are grey, so that each step is seen
    pipeline = HFDDPMPipeline(plain.unet, plain.scheduler, classifier=make_classifier())
    walk = {"num_inference_steps": 3, "eta": 0.0, "class_labels": 1, "classifier_scale": 4.0}
    expected = list(sample_images(pipeline, range(2), seed=5, **{**walk, "class_labels": [1, 1]}))
    assert all(map(same, app.sample(pipeline, no_progress, dict(walk), 5, 2), expected))
    without = app.sample(pipeline, no_progress, walk | {"classifier_scale": 0.0}, 5, 2)
    assert not any(map(same, without, expected))
    assert same(app.denoise(pipeline, no_progress, walk, 5)[0]["x_t"][-1], expected[0])
    assert same(app.interpolate(pipeline, no_progress, walk, 5, 6, 2)[0], expected[0])


def test_a_gan_has_no_steps_to_choose_and_truncation(app):
    torch.manual_seed(0)
    scheduler = HFDDPMScheduler(4, beta_schedule="vp", prediction_type="sample", clip_sample=False)
    pipeline = HFDDGANPipeline(generator_preset("tiny", num_classes=3), scheduler, id2label={1: "one"})
    controls = app.walk_controls(pipeline, in_turn=True, solver=True)
    assert list(controls) == ["class_labels", "truncation"]
    assert controls["class_labels"].choices == [(app.IN_TURN, -1), ("0", 0), ("one", 1), ("2", 2)]
    walk = {"class_labels": -1, "truncation": 0.5}
    expected = list(sample_gan(pipeline, range(20), seed=5, truncation=0.5))
    assert all(map(same, app.sample(pipeline, no_progress, dict(walk), 5, 20), expected))
    between = app.interpolate(pipeline, no_progress, walk | {"class_labels": 0}, 5, 6, 3)
    assert same(between[0], expected[0]) and not same(between[1], between[0])
    app.build(pipeline, "x")


def test_what_a_page_cannot_show_is_one_sentence(app, make_pipeline):
    with pytest.raises(ValueError, match="the images have 4 channels, and the page can only show 1 or 3"):
        app.build(make_pipeline(in_channels=4, out_channels=4), "x")
    with pytest.raises(ValueError, match="no sample_size"):
        app.build(make_pipeline(sample_size=None), "x")

    class Silent(DiffusionPipeline):
        """A model that draws no images, or the code files of an older hf_ddpm."""

    with pytest.raises(ValueError, match="Silent does not say what noise an image starts from"):
        app.build(Silent(), "x")


def test_the_pipelines_own_refusal_and_full_memory_reach_the_user_in_a_sentence(app, make_pipeline):
    from gradio import Error

    with pytest.raises(Error, match="num_inference_steps=0 must be a whole number from 1 to 1000"):
        app.spoken(app.sample, make_pipeline(), ("num_inference_steps",))(no_progress, 0, 4, 0)

    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Error, match="the images do not fit into memory: draw fewer images"):
        app.spoken(too_much, make_pipeline(), ())(no_progress)


def test_a_stock_solver_has_no_eta_and_no_denoising(app, make_pipeline):
    from diffusers import DPMSolverMultistepScheduler

    pipeline = make_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert list(app.walk_controls(pipeline)) == ["num_inference_steps"]
    labels = [block.label for block in app.build(pipeline, "x").blocks.values() if type(block).__name__ == "Tab"]
    assert labels == ["Sample", "Interpolation"]
    assert len(app.interpolate(pipeline, no_progress, {"num_inference_steps": 3}, 0, 1, 3)) == 3


def test_gradio_is_told_to_call_nobody(app, make_pipeline):
    assert app.build(make_pipeline(), "x").analytics_enabled is False


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "0"], "--port 0 must be from 1 to 65535"),
        (["--host", "203.0.113.1"], "the page cannot be served at --host 203.0.113.1"),
        ([], "there is no checkpoint folder at './nowhere'"),
    ],
)
def test_demo_refuses_in_one_sentence(words, sentence):
    import argparse

    from hf_ddpm.commands import demo

    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    with pytest.raises(UserError, match=re.escape(sentence)):
        demo.run(parser.parse_args(["./nowhere", *words]))


@pytest.mark.parametrize("what", ["vae", "larger"])
def test_demo_refuses_a_classifier_that_guides_nothing(what, make_pipeline, make_classifier, vae_pipeline, tmp_path):
    import argparse

    from hf_ddpm.commands import demo

    (vae_pipeline if what == "vae" else make_pipeline()).save_pretrained(tmp_path / "checkpoint")
    make_classifier(sample_size=16).save_pretrained(tmp_path / "classifier")
    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    said = {"vae": "contains a VAE: leave the option out", "larger": "the classifier has the sample size (16, 16)"}[
        what
    ]
    with pytest.raises(UserError, match=re.escape(said)):
        demo.run(parser.parse_args([str(tmp_path / "checkpoint"), "--classifier", str(tmp_path / "classifier")]))


def test_demo_refuses_a_port_that_is_taken(tmp_path):
    import argparse

    from hf_ddpm.commands import demo

    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"the page cannot be served at --host 127.0.0.1 --port {port}"):
            demo.run(parser.parse_args(["./nowhere", "--port", str(port)]))


def no_progress(*_):
    """Where nobody looks at a bar."""


def test_classes_are_chosen_by_name(app, make_pipeline):
    own = make_pipeline(num_class_embeds=4)
    names = {0: "cat", 1: "crane", 2: "crane"}
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, null_class=3, id2label=names)
    assert app.class_choices(pipeline) == [("cat", 0), ("crane (1)", 1), ("crane (2)", 2)]
    assert app.class_choices(make_pipeline(num_class_embeds=2)) == [("0", 0), ("1", 1)]
    page = app.build(pipeline, "named")
    menus = [block for block in page.blocks.values() if getattr(block, "label", None) == "Class"]
    assert menus[0].choices == [(app.IN_TURN, -1), *app.class_choices(pipeline)]
    assert [menu.choices for menu in menus[1:]] == [app.class_choices(pipeline)] * (len(menus) - 1)
