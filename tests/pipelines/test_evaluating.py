"""Networks are evaluated without dropout, whichever threads do it at the same time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.pipelines.evaluating import _USED, evaluating


def test_every_part_is_put_back_into_its_mode():
    network = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    network[1].eval()
    with evaluating(network):
        assert not network.training and not network[0].training
        with evaluating(network):
            pass
        assert not network[0].training
    assert [network.training, network[0].training, network[1].training] == [True, True, False]
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network[0].training and not _USED


def test_the_last_thread_that_leaves_puts_the_mode_back():
    network, inside, leave = nn.Dropout().train(), threading.Barrier(2), threading.Event()

    def stay():
        with evaluating(network):
            inside.wait(timeout=10)
            leave.wait(timeout=10)
            return network.training

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(stay)
        with evaluating(network):
            inside.wait(timeout=10)
        assert not network.training  # the other thread is still inside
        leave.set()
        assert other.result() is False
    assert network.training


def test_threads_with_pipelines_of_their_own_draw_what_one_does(make_pipeline):
    first = make_pipeline(dropout=0.3)
    first.unet.train()

    def draw(seed):
        pipeline = HFDDPMPipeline(first.unet, HFDDPMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(2, 5, generator=torch.Generator().manual_seed(seed), output_type="pt").images

    wanted = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(draw, range(6)))
    assert all(map(torch.equal, found, wanted)) and first.unet.training
