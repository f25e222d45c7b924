"""The noise process in both directions."""

from hf_ddpm.schedulers.scheduling_hf_ddpm import HFDDPMScheduler

__all__ = ["HFDDPMScheduler"]
