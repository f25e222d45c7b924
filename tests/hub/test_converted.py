"""A converted checkpoint is pushed and pulled like any other, through the three doors."""

import torch
from diffusers import DDPMPipeline, DiffusionPipeline

from benchmarks.openai_reference import Config, Weights, unet
from hf_ddpm import HFDDPMPipeline
from hf_ddpm.conversion.convert import convert
from hf_ddpm.hub import push_checkpoint

FLAGS = {"image_size": "16", "num_channels": "32", "channel_mult": "1,2", "attention_resolutions": "8"}
FLAGS |= {"num_res_blocks": "1", "num_head_channels": "32", "resblock_updown": "True", "learn_sigma": "True"}


def test_published_weights_go_to_the_hub_and_come_back(hub, tmp_path):
    weights = Weights()
    unet(
        weights,
        Config(32, mult=(1, 2), attention=(2,), head_dim=32),
        torch.zeros(1, 3, 16, 16),
        torch.tensor([1]),
    )
    torch.save(weights.checkpoint(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out", origin="guided-diffusion", words=FLAGS)
    push_checkpoint(tmp_path / "out", "ada/adm")
    card = hub.files("ada/adm")["README.md"].decode()
    assert 'from_pretrained("ada/adm")' in card and "whose weights were converted" in card and str(tmp_path) not in card

    def drawn(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline(batch_size=1, num_inference_steps=4, generator=generator, output_type="np").images

    expected = drawn(HFDDPMPipeline.from_pretrained(tmp_path / "out"))
    assert (drawn(HFDDPMPipeline.from_pretrained("ada/adm")) == expected).all()
    third = DiffusionPipeline.from_pretrained("ada/adm", custom_pipeline="ada/adm", trust_remote_code=True)
    assert (drawn(third) == expected).all()
    assert abs(drawn(DDPMPipeline.from_pretrained("ada/adm")) - expected).max() < 1e-4
