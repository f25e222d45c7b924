"""What the scheduler's tests share."""

import pytest


@pytest.fixture
def prediction_of():
    """(scheduler, x_0, noise, t) -> what a perfect network says about x_t = add_noise(x_0, noise, t)."""

    def predict(scheduler, x_0, noise, t):
        x_t = scheduler.add_noise(x_0, noise, t)
        return {
            "epsilon": lambda: noise,
            "sample": lambda: x_0,
            "v_prediction": lambda: scheduler.get_velocity(x_0, noise, t),
            "mean": lambda: scheduler.posterior_mean(x_0, x_t, t),
        }[scheduler.config.prediction_type]()

    return predict
