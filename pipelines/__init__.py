"""What a user runs and the Hub stores: one `DiffusionPipeline` subclass a file, self-contained with its siblings."""

from hf_ddpm.pipelines.editing import slerp
from hf_ddpm.pipelines.pipeline_hf_ddpm import HFDDPMPipeline

__all__ = ["HFDDPMPipeline", "slerp"]
