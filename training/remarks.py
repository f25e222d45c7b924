"""What a line of the log has to say to whoever watches, beside its numbers."""

from collections.abc import Mapping

from hf_ddpm.objectives import DISCRIMINATOR

SURE = 0.05  # of the discriminator's loss, which is 1.39 where it can only guess (0.69 if it is relativistic)
BLIND = 0.01  # of its logits, real minus fake


def remark(logged: Mapping[str, float]) -> str | None:
    """That a player of a game has won, so that the other one learns nothing more; None where there is nothing to say.

    Args:
        logged: means since the line before, by their names in the log.
    """
    loss = logged.get(f"{DISCRIMINATOR}/loss")
    gaps = {name: value for name, value in logged.items() if name.startswith(f"{DISCRIMINATOR}/gap_t")}
    if loss is None or not gaps:
        return None
    if loss < SURE:
        return (
            f"the discriminator has won: its loss is {loss:.3f}; raise --r1_gamma, or lower "
            "--discriminator_optimization.lr"
        )
    if max(map(abs, gaps.values())) < BLIND:
        return (
            f"the generator has won: the discriminator tells no step apart (its logits differ by less than {BLIND}); "
            "lower --r1_gamma, or raise --discriminator_optimization.lr"
        )
    return None
