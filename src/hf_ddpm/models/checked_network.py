"""How a network of ours is opened, saved and pushed: the files are checked first, and no folder's name is published."""

import os
from abc import ABC
from functools import wraps
from typing import Any, Self

from diffusers.models.modeling_utils import ModelMixin

from hf_ddpm.models.pushing import of_package, pushing


class CheckedNetwork(ABC):  # noqa: B024  # ModelMixin makes it whole
    """The half of a network that opens saved ones; beside `ModelMixin`, before it."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        """Open a saved network from a folder or the Hub, `subfolder="vae"` of a pipeline; its files are checked first.

        Args:
            pretrained_model_name_or_path: a folder, or `user/name`.
            **kwargs: those of diffusers: `subfolder`, `revision`, `variant`, `dtype`, `cache_dir`, `token`, ...

        Raises:
            OSError: nothing is there, or the Hub does not give it.
            ValueError: damaged, pickles, or sizes that would fill the memory.
        """
        open_checked = of_package("open_network")
        if open_checked is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return open_checked(cls, pretrained_model_name_or_path, **kwargs)

    @wraps(ModelMixin.save_pretrained)  # pipelines ask for its parameters
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own; with `push_to_hub=True`, without the folder that the network was opened from."""
        with pushing(*([self] if kwargs.get("push_to_hub") else [])):
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """As diffusers' own; of the folder that the network was opened from, its config says the last name.

        Args:
            repo_id: `user/name` on the Hub, which is made if it is not there.
            *args, **kwargs: those of diffusers: `commit_message`, `private`, `token`, ...

        Returns:
            str: the address of the commit.
        """
        with pushing(self):
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[misc]
