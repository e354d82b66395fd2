"""What can be known before training of switches that the schedule never lets begin."""

from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.optim.schedule import Clock, lr_scale, ordinary
from golfcore.train import meta


def check_begins(cfg: Config) -> None:
    """UserError if an average, QAT, guided bit widths or meta-learning would take no step.

    By the step clock the LR multiplier of every step is known; where it also depends on time or losses (the wall
    clock, an adaptive warmdown), only that there are too few steps.
    """
    average, quant, steps = cfg.average, cfg.quant, ordinary(cfg).iterations
    scales = multipliers(cfg)
    lowest = None if scales is None else min(scales, default=1.0)
    if average.kind != "none" and average.every > steps:
        raise UserError(f"average.every {average.every}: expected at most the {steps} steps of training")
    if average.kind == "swa" and scales is not None:
        if min(scales[average.every - 1 :: average.every]) >= average.start_scale:
            _never("average.kind swa", "average.start_scale", average.start_scale, lowest, f"every {average.every}th")
    if cfg.optim.qat != "none" and lowest is not None and lowest >= cfg.optim.qat_scale:
        _never(f"optim.qat {cfg.optim.qat}", "optim.qat_scale", cfg.optim.qat_scale, lowest)
    if (quant.guided_high or quant.guided_low) and lowest is not None and lowest >= quant.guided_scale:
        _never("quant.guided_high and guided_low", "quant.guided_scale", quant.guided_scale, lowest)
    if cfg.meta.enabled and scales is not None:
        if not any(meta.due(cfg.meta, step, scale) for step, scale in enumerate(scales)):
            raise UserError(
                f"meta.enabled: expected a step to meta-learn at (every {cfg.meta.every} steps, LR multiplier above "
                f"{cfg.meta.min_scale:g}), found none in {steps} steps"
            )


def multipliers(cfg: Config) -> list[float] | None:
    """The LR multiplier of each step of ordinary training; None if it depends on more than the number of the step."""
    schedule = ordinary(cfg)
    if schedule.clock != "steps" or schedule.adaptive or schedule.max_seconds:
        return None
    return [lr_scale(schedule, Clock(step, 0.0)) for step in range(schedule.iterations)]


def _never(what: str, key: str, limit: float, lowest: float | None, steps: str = "a") -> None:
    raise UserError(
        f"{what}: expected {steps} step with an LR multiplier below {key} {limit:g}, "
        f"found none (the lowest of all steps is {lowest:.3g})"
    )
