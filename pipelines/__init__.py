"""Pipelines: one `DiffusionPipeline` subclass per file, which is saved with checkpoints together with its siblings."""

from hf_ddpm.pipelines.interpolation import slerp
from hf_ddpm.pipelines.pipeline_hf_classifier import HFClassifierPipeline
from hf_ddpm.pipelines.pipeline_hf_ddgan import HFDDGANPipeline
from hf_ddpm.pipelines.pipeline_hf_ddpm import HFDDPMPipeline
from hf_ddpm.pipelines.pipeline_hf_vae import HFVAEPipeline

__all__ = ["HFClassifierPipeline", "HFDDGANPipeline", "HFDDPMPipeline", "HFVAEPipeline", "slerp"]
