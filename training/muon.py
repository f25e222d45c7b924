"""Muon: orthogonalised momentum for the weight matrices, and Adam for everything else.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon supports only matrices
and iterates in bfloat16. Here, a convolution is the matrix (out, in * k * k), the iteration has the precision of the
weights, and matrices with the same shape are orthogonalised together.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_ddpm.errors import UserError

QUINTIC = (3.4445, -4.7750, 2.0315)  # maps singular values in (0, 1] to about [0.7, 1.2] in 5 rounds
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Return U V^T of each matrix U S V^T, up to singular values between about 0.7 and 1.2, by Newton-Schulz iteration.

    Args:
        matrices: The matrices, (N, rows, columns).
        rounds: The number of iterations of X <- a X + b (X X^T) X + c (X X^T)^2 X.
    """
    a, b, c = QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)
    for _ in range(rounds):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divide the parameters of a network into the hidden weight matrices, which Muon updates, and the rest.

    The hidden matrices are the weights of linear layers and convolutions, except for the two layers where data enter
    and leave the network. Images enter through the first convolution, whatever layers embed the timestep before it; in
    a network without convolutions, vectors enter through the first linear layer. The prediction leaves through the last
    layer. The first and the last layer are those of `model.modules()`, so a network must define its layers in the order
    in which data pass through them.

    Args:
        model: The bare network, without the wrappers of Accelerate.

    Returns:
        tuple: The hidden matrices, and the rest (the first and the last layer, embeddings, norms, biases and single
        parameters), each in the order of `model.parameters()`.
    """
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    convolutions = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    outer = [*(convolutions or layers)[:1], *layers[-1:]]
    matrices = {p for layer in layers for p in layer.parameters() if p.ndim >= 2}
    chosen = matrices - {p for layer in outer for p in layer.parameters()}
    parameters = list(model.parameters())
    return [p for p in parameters if p in chosen], [p for p in parameters if p not in chosen]


class Muon(torch.optim.Optimizer):
    """One optimizer with two groups of parameters.

    Args:
        hidden: The weights with two or more dimensions that are updated with orthogonalised Nesterov momentum.
        rest: The parameters that are updated with Adam.
        muon_lr: The learning rate of the hidden weights. An update has singular values of about muon_lr * sqrt(max(1,
            out / in)).
        lr: The learning rate of Adam.
        momentum: The momentum of the hidden weights.
        betas, eps: The other parameters of Adam.
        weight_decay: The decoupled weight decay of both groups.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        *,
        muon_lr: float,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        adam = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": list(hidden), "kind": "muon", "lr": muon_lr, "momentum": momentum, "weight_decay": weight_decay},
            {"params": list(rest), "kind": "adam", "lr": lr, "step": 0} | adam,
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if parameters and group["kind"] == "muon":
                self._muon(parameters, group)
            elif parameters:
                self._adam(parameters, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the `state_dict()` of an optimizer that divides its weights in the same way.

        Raises:
            UserError: If it divides them differently, as in older runs of networks other than a UNet, which began
                before the first and the last layer were identified by their position.
        """
        saved = [len(group["params"]) for group in state_dict["param_groups"]]
        ours = [len(group["params"]) for group in self.param_groups]
        if saved != ours:
            raise UserError(
                f"the saved optimizer divides the parameters between Muon and Adam as {saved}, but this version as "
                f"{ours}, because Adam updates the first and the last layer: continue the run with the version that "
                "started it, or start a new run"
            )
        super().load_state_dict(state_dict)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, momenta = _gradients(parameters), self._buffers("momentum", parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(parameters):
            shapes.setdefault((p.shape[0], p[0].numel()), []).append(i)
        for (rows, columns), members in shapes.items():
            updates = orthogonalize(torch.stack([nesterov[i].reshape(rows, columns) for i in members]))
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for i, update in zip(members, updates.unbind(0), strict=True):
                parameters[i].add_(update.reshape(parameters[i].shape), alpha=-scale)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = _gradients(parameters)
        first, second = self._buffers("exp_avg", parameters), self._buffers("exp_avg_sq", parameters)
        group["step"] += 1
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominators, -group["lr"] / (1 - beta1 ** group["step"]))

    def _buffers(self, name: str, parameters: list[Tensor]) -> list[Tensor]:
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
