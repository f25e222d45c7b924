"""The discretised decoder gives every grey level its mass, to the last digit, however far away it is."""

import math

import mpmath
import pytest
import torch

from hf_ddpm.models.gaussian import discretized_gaussian_log_likelihood, gaussian_kl, log_cdf


def levels(bit_depth, dtype=torch.float64):
    largest = 2**bit_depth - 1
    return (2 * torch.arange(largest + 1, dtype=dtype) - largest) / largest


def exact(x, mean, std, bit_depth):
    """The log of the mass with 60 digits."""
    with mpmath.workdps(60):
        half = mpmath.mpf(1) / (2**bit_depth - 1)
        low = -mpmath.inf if x < -1 + half else (mpmath.mpf(x) - half - mean) / std
        high = mpmath.inf if x > 1 - half else (mpmath.mpf(x) + half - mean) / std
        low, high = (-high, -low) if low > 0 else (low, high)
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@pytest.mark.parametrize("bit_depth", [4, 8])
@pytest.mark.parametrize("mean", [-3.0, -0.7, 0.0013, 1.0])
@pytest.mark.parametrize("std", [1e-4, 0.02, 0.6, 30.0])
def test_the_masses_of_all_levels_sum_to_one(bit_depth, mean, std):
    x = levels(bit_depth)
    log_variance = torch.tensor(2 * math.log(std), dtype=torch.float64)
    masses = discretized_gaussian_log_likelihood(x, torch.tensor(mean).double(), log_variance, bit_depth=bit_depth)
    assert masses.max() <= 0
    assert masses.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-5)])
def test_it_is_the_exact_mass_with_finite_gradients_far_out(dtype, tolerance):
    """Up to 4e5 standard deviations away, where a difference of two Phi is 0 and its logarithm minus infinity."""
    for bit_depth in (1, 4, 8):
        for x in (-1.0, levels(bit_depth)[2 ** (bit_depth - 1)].item(), 1.0):
            for mean in (-3.0, -0.3, 0.999):
                for std in (1e-5, 1e-3, 0.3, 2.0):
                    x_0 = torch.tensor([x], dtype=dtype)
                    m = torch.tensor([mean], dtype=dtype, requires_grad=True)
                    log_variance = torch.tensor([2 * math.log(std)], dtype=dtype, requires_grad=True)
                    found = discretized_gaussian_log_likelihood(x_0, m, log_variance, bit_depth=bit_depth)
                    wanted = exact(x_0.item(), m.item(), math.exp(log_variance.item() / 2), bit_depth)
                    assert found.item() == pytest.approx(wanted, rel=tolerance, abs=tolerance), (
                        bit_depth,
                        x,
                        mean,
                        std,
                    )
                    gradients = torch.autograd.grad(found.sum(), (m, log_variance))
                    assert all(g.isfinite().all() for g in gradients), (bit_depth, x, mean, std)


def test_the_gradient_is_the_derivative():
    x = levels(8)[[0, 3, 100, 128, 254, 255]]
    for std in (0.003, 0.1, 2.0):
        mean = torch.linspace(-1.2, 0.9, 6, dtype=torch.float64, requires_grad=True)
        log_variance = torch.full((6,), 2 * math.log(std), dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(
            lambda m, v: discretized_gaussian_log_likelihood(x, m, v), (mean, log_variance), atol=1e-4, rtol=1e-6
        )


def test_no_bin_of_float32_is_minus_infinity():
    """16-bit bins of a wide decoder are narrower than float32 resolves."""
    x = levels(16, torch.float32)[::97]
    log_variance = torch.full_like(x, 10.0, requires_grad=True)
    found = discretized_gaussian_log_likelihood(x, torch.full_like(x, 0.3), log_variance, bit_depth=16)
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), log_variance)[0].isfinite().all()


def test_log_cdf_where_its_two_formulas_meet():
    for z in (-1 - 1e-12, -1.0, -1 + 1e-12, -40.0, 0.0, 9.0):
        wanted = float(mpmath.log(mpmath.ncdf(mpmath.mpf(z))))
        assert log_cdf(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(wanted, rel=1e-13)


def test_kl_of_gaussians_is_that_of_torch():
    mean1, mean2, v1, v2 = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).double()
    p, q = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean1, v1), (mean2, v2)))
    torch.testing.assert_close(gaussian_kl(mean1, v1, mean2, v2), torch.distributions.kl_divergence(p, q))
