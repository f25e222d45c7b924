"""The coefficients of all T steps of the training chain."""

import torch
from torch import Tensor

from hf_ddpm.schedulers.coefficient_tables import CoefficientTables
from hf_ddpm.schedulers.transition import log_variance_bounds, x_0_from_score


def chain_tables(betas: Tensor, prediction_type: str, variance_type: str) -> CoefficientTables:
    """Compute the tables, indexed by t, that `HFDDPMScheduler` uses on the training chain; `betas` is (T,) float64.

    forward: sqrt(abar), sqrt(1 - abar). pair: sqrt(abar), sqrt(1 - abar) of the step before, and sqrt(alpha),
    sqrt(beta). posterior: the coefficients of x_0 and x_t in its mean (DDPM, eq. 7). prediction: the coefficients of
    x_t and of the network's output in x_0. guidance: the coefficients of an added score in x_0 and in eps.
    log variance: one column if it is fixed, the two bounds for `learned_range`.
    """
    alpha = 1 - betas
    abar = alpha.cumprod(dim=0)
    abar_prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    from_x_0 = abar_prev.sqrt() * betas / (1 - abar)
    from_x_t = alpha.sqrt() * (1 - abar_prev) / (1 - abar)
    x_0_from_x_t_and_output = {
        "epsilon": (1 / abar.sqrt(), -((1 - abar) / abar).sqrt()),
        "sample": (torch.zeros_like(abar), torch.ones_like(abar)),
        "v_prediction": (abar.sqrt(), -(1 - abar).sqrt()),
        "mean": (-from_x_t / from_x_0, 1 / from_x_0),
    }
    x_0_from_x_t, x_0_from_output = x_0_from_x_t_and_output[prediction_type]
    log_posterior, log_beta = (bound.flip(0) for bound in log_variance_bounds(abar.flip(0), abar_prev.flip(0)))
    log_large = torch.cat([log_posterior[:1], log_beta[1:]])

    tables = CoefficientTables(len(abar))
    tables.add("forward", [abar.sqrt(), (1 - abar).sqrt()])
    tables.add("pair", [abar_prev.sqrt(), (1 - abar_prev).sqrt(), alpha.sqrt(), betas.sqrt()])
    tables.add("snr", [abar / (1 - abar)])
    tables.add("posterior", [from_x_0, from_x_t])
    tables.add("mean from x_0", [from_x_0])
    tables.add("posterior variance", [(1 - abar_prev) / (1 - abar) * betas])
    tables.add("posterior log variance", [log_posterior])
    tables.add("prediction", [x_0_from_x_t, x_0_from_output])
    sigma_squared = 1 - abar
    tables.add(
        "score", [(abar.sqrt() * x_0_from_x_t - 1) / sigma_squared, abar.sqrt() * x_0_from_output / sigma_squared]
    )
    tables.add("guidance", [x_0_from_score(abar), -sigma_squared.sqrt() * (abar > 0)])
    tables.add("reverse mean", [from_x_t + from_x_0 * x_0_from_x_t, from_x_0 * x_0_from_output])
    if variance_type == "learned_range":
        tables.add("log variance", [log_posterior, log_beta])
    elif variance_type != "learned":
        tables.add("log variance", [log_large if variance_type.startswith("fixed_large") else log_posterior])
    return tables
