"""The walk: whoever shifts a prediction shifts all that is asked of a network, and a callback can end or bend it."""

import pytest
import torch

from hf_ddpm.likelihood import GridImages, Network, bound_terms, flow_terms
from hf_ddpm.pipelines.walk import Guided, Predict, walk_down


def pictures(count=2):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


ASKS = {
    "sampling": lambda p, images: p(2, 3, corrector_steps=1, output_type="pt"),
    "inversion": lambda p, images: p.invert(pictures(), 3),
    "inpainting": lambda p, images: p.inpaint(pictures(), torch.ones(1), 3, output_type="pt"),
    "score": lambda p, images: p.score(pictures(), 3),
    "bound": lambda p, images: bound_terms(Network(p.unet, p.scheduler), images, torch.arange(1), seed=0),
    "flow": lambda p, images: flow_terms(Network(p.unet, p.scheduler), images, torch.arange(1), seed=0, steps=2),
}


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS)
def test_whatever_is_asked_of_a_network_goes_through_one_call(asks, make_pipeline, monkeypatch):
    """With another answer in the place of the network's, the network itself is never reached."""
    pipeline, reached = make_pipeline({"num_train_timesteps": 10}), []
    images = GridImages(torch.full((1, 1, 8, 8), 100).int(), None, torch.arange(1), 8)
    pipeline.unet.register_forward_pre_hook(lambda *_: reached.append(1))
    asks(pipeline, images)
    assert reached
    reached.clear()
    monkeypatch.setattr(Predict, "__call__", lambda _self, x_t, _t: 0.1 * x_t)
    asks(pipeline, images)
    assert not reached


def test_labels_are_given_to_networks_with_classes_alone_and_unread_variances_cut_off():
    def network(x_t, t, **given):
        return type("Output", (), {"sample": torch.cat([x_t, given.get("class_labels", 0 * x_t) + x_t], dim=1)})

    x_t, labels = pictures(), torch.ones(2, 1, 8, 8)
    assert torch.equal(Predict(network)(x_t, 3), torch.cat([x_t, x_t], dim=1))
    assert torch.equal(Predict(network, labels)(x_t, 3), torch.cat([x_t, x_t + 1], dim=1))
    assert torch.equal(Predict(network, labels, reads_variance=False)(x_t, 3), x_t)


def test_the_walk_goes_on_from_the_latents_that_it_finds(make_pipeline):
    """A network that sees x_0 in whatever it is shown ends at what it was shown before the last step."""
    scheduler = make_pipeline({"num_train_timesteps": 20, "prediction_type": "sample"}).scheduler
    scheduler.set_timesteps(4)
    x_0, calls = pictures(), []

    def shown(x_t, t):
        calls.append(int(t))
        return type("Output", (), {"sample": x_t})

    for i, t, seen in walk_down(Guided(Predict(shown), scheduler), 0 * x_0, {"eta": 0.0}, langevin={}, on_call=int):
        assert int(t) == scheduler.timesteps[i]
        if i == 0:
            assert torch.equal(seen["latents"], 0 * x_0)
        if i < 3:
            seen["latents"] = x_0
    assert calls == scheduler.timesteps.tolist()
    assert torch.equal(seen["latents"], x_0)


def test_the_corrector_asks_at_every_level_but_the_last(make_pipeline):
    pipeline, calls = make_pipeline({"num_train_timesteps": 20}), []
    pipeline.scheduler.set_timesteps(3)
    first, second, third = pipeline.scheduler.timesteps.tolist()

    def network(x_t, t):
        calls.append(int(t))
        return type("Output", (), {"sample": 0 * x_t})

    bar = []
    langevin = {"generator": torch.Generator().manual_seed(0), "snr": 0.1}
    keywords = {"corrector_steps": 2, "langevin": langevin, "on_call": lambda: bar.append(1)}
    assert len(list(walk_down(Guided(Predict(network), pipeline.scheduler), pictures(), {"eta": 0.0}, **keywords))) == 3
    assert calls == [first, second, second, second, third, third, third]
    assert len(bar) == len(calls)


def test_an_interrupt_ends_the_walk_after_its_step_and_the_next_call_walks_all_of_it(make_pipeline):
    pipeline, seen = make_pipeline(), []

    def stop(own, i, t, at):
        seen.append(at["latents"])
        own._interrupt = i == 2
        return {"latents": 0.5 * at["latents"]}

    out = pipeline(2, 10, callback_on_step_end=stop, output_type="pt").images
    assert len(seen) == 3 and pipeline.interrupt
    assert torch.equal(out, (0.5 * seen[-1] / 2 + 0.5).clamp(0, 1))
    steps = []
    pipeline(1, 10, callback_on_step_end=lambda _p, i, _t, _at: steps.append(i))
    assert steps == list(range(10)) and not pipeline.interrupt


def test_a_callback_that_returns_nothing_changes_nothing(make_pipeline):
    pipeline = make_pipeline()

    def meddle(_pipeline, _i, _t, at):
        at["latents"] = 0 * at["latents"]

    outs = [
        pipeline(2, 4, generator=torch.Generator().manual_seed(0), callback_on_step_end=callback, output_type="pt")[0]
        for callback in (None, meddle)
    ]
    assert torch.equal(*outs)
