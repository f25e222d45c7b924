"""Advice that a run prints in addition to the figures of its log."""

from collections.abc import Mapping, Sequence

from hf_ddpm.objectives import DISCRIMINATOR

SURE = 10.0  # logits, real minus fake, at which the generator's gradient vanishes: sigmoid(-5) on either side
BLIND = 0.01  # logits, real minus fake, at which the discriminator is guessing
OF_GAPS = f"{DISCRIMINATOR}/gap_t"


SLOWER = 3.0  # a multiple of the seconds per step at the start
AT_THE_START = 3  # the number of lines of the log


def remark(logged: Mapping[str, float]) -> str | None:
    """Return a message if one player of a GAN has won, so that the other one learns nothing more, or None.

    Args:
        logged: The means since the previous line of the log, by their names in the log.
    """
    gaps = {name.removeprefix(OF_GAPS): value for name, value in logged.items() if name.startswith(OF_GAPS)}
    if not gaps:
        return None
    if sure := [t for t, gap in gaps.items() if gap > SURE]:
        return (
            f"the discriminator has won at t = {', '.join(sure)}: its logits differ by more than {SURE:.0f} there; "
            "start a new run with a larger --r1_gamma or a smaller --discriminator_optimization.lr"
        )
    if max(map(abs, gaps.values())) < BLIND:
        return (
            "the generator has won: the discriminator cannot tell real from fake images at any t (its logits differ by "
            f"less than {BLIND}); start a new run with a smaller --r1_gamma or a larger "
            "--discriminator_optimization.lr"
        )
    return None


def slow_remark(seconds_per_step: Sequence[float], threads: int) -> str | None:
    """Return advice for a run on a CPU that has become several times slower than it was at its start, or None.

    Args:
        seconds_per_step: The means between two lines of the log, since this process started.
        threads: The number of threads of this process. With one thread there is nothing to advise.
    """
    if threads == 1 or len(seconds_per_step) <= AT_THE_START:
        return None
    now, then = seconds_per_step[-1], min(seconds_per_step[:AT_THE_START])
    if now <= SLOWER * then:
        return None
    return (
        f"a step takes {now:.2g} seconds now and took {then:.2g} at the start: if other programs use the cores of this "
        "machine, stop the run with Ctrl-C and continue it with --resume latest --cpu_threads 1"
    )
