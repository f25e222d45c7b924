"""Loading, saving and pushing of our networks: files are checked first, and no path of a local folder is published."""

import os
from abc import ABC
from functools import wraps
from typing import Any, Self

from diffusers.models.modeling_utils import ModelMixin

from hf_ddpm.models.pushing import of_package, pushing
from hf_ddpm.models.savable import check_savable, with_dtypes


class CheckedNetwork(ABC):  # noqa: B024  # ModelMixin completes it
    """The part of a network that loads, saves and pushes it; it comes before `ModelMixin` in the base classes."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        """Load a saved network from a folder or the Hub, after its files are checked.

        Args:
            pretrained_model_name_or_path: A folder, or `user/name` on the Hub.
            **kwargs: The keywords of diffusers: `subfolder` (such as "vae" in a pipeline), `revision`, `variant`,
                `dtype`, `cache_dir`, `token`, ...

        Raises:
            OSError: If the network does not exist, or cannot be downloaded from the Hub.
            ValueError: If the files are corrupted or pickles, or the network would not fit in memory.
        """
        open_checked, kwargs = of_package("open_network"), with_dtypes(kwargs)
        if open_checked is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return open_checked(cls, pretrained_model_name_or_path, **kwargs)

    @wraps(ModelMixin.save_pretrained)  # pipelines look at its parameters
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does; with `push_to_hub=True`, without the path that the network was loaded from.

        Raises:
            ValueError: If the weights are not those that the config describes, so that it could not be loaded again.
        """
        check_savable("the network", self)  # type: ignore[arg-type]
        with pushing(*([self] if kwargs.get("push_to_hub") else [])):
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Push as diffusers does, with only the last part of the path that the network was loaded from in its config.

        Args:
            repo_id: `user/name` on the Hub, which is created if it does not exist.
            *args, **kwargs: The arguments of diffusers: `commit_message`, `private`, `token`, ...

        Returns:
            str: The URL of the commit.
        """
        with pushing(self):
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[misc]
