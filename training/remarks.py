"""What a line of the log has to say to whoever watches, beside its numbers."""

from collections.abc import Mapping

from hf_ddpm.objectives import DISCRIMINATOR

SURE = 10.0  # logits, real minus fake, where the generator's gradient is gone: sigmoid(-5) on either side
BLIND = 0.01  # the same where the discriminator guesses
OF_GAPS = f"{DISCRIMINATOR}/gap_t"


def remark(logged: Mapping[str, float]) -> str | None:
    """That a player of a game has won, so that the other one learns nothing more; None where there is nothing to say.

    Args:
        logged: means since the line before, by their names in the log.
    """
    gaps = {name.removeprefix(OF_GAPS): value for name, value in logged.items() if name.startswith(OF_GAPS)}
    if not gaps:
        return None
    if sure := [t for t, gap in gaps.items() if gap > SURE]:
        return (
            f"the discriminator has won at t = {', '.join(sure)}: its logits differ by more than {SURE:.0f} there; "
            "begin anew with a larger --r1_gamma or a smaller --discriminator_optimization.lr"
        )
    if max(map(abs, gaps.values())) < BLIND:
        return (
            f"the generator has won: the discriminator tells no step apart (its logits differ by less than {BLIND}); "
            "begin anew with a smaller --r1_gamma or a larger --discriminator_optimization.lr"
        )
    return None
