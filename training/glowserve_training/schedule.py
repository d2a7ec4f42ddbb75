"""When a run is checked and validated, and how its learning rate changes: functions of configuration and step.

After the warm-up the cosine falls from 1 to 0 over the steps of a part (Loshchilov and Hutter 2017, "SGDR: Stochastic
gradient descent with warm restarts"): an extension begins with a warm-up again. The constant schedule has one warm-up.
"""

from __future__ import annotations

import math

from glowserve_training.config import Part, RunConfig

# Validations, and saved states, in a run; and the most steps between two of them.
_VALIDATIONS, _MOST_STEPS_BETWEEN_VALIDATIONS = 20, 500
# Most steps between two checks of the guard, each of which waits for the device and copies the state.
_MOST_STEPS_BETWEEN_CHECKS = 50


def intervals(steps: int) -> tuple[int, int]:
    """Steps between checks of the guard, and between validations, in a run that began with this number of steps.

    The second is a multiple of the first, so that every validation, and every saved state, has passed a check.
    """
    validate = max(1, min(steps // _VALIDATIONS, _MOST_STEPS_BETWEEN_VALIDATIONS))
    check = min(_MOST_STEPS_BETWEEN_CHECKS, validate)
    return check, validate - validate % check


def default_patience(steps: int) -> int:
    """Half of the validations of a run that begins with this number of steps.

    A cosine makes much of its progress near its end, so that a shorter patience would cut off what was to come. That of
    an extension is 0 for the same reason: its learning rate rises again, and validation has to catch up first.
    """
    return max(1, steps // intervals(steps)[1] // 2)


def is_check_due(config: RunConfig, step: int) -> bool:
    """Whether the guard checks after a step, which counts from 1: regularly, and at the end of each part."""
    return step % intervals(config.steps)[0] == 0 or _ends_part(config, step)


def is_validation_due(config: RunConfig, step: int) -> bool:
    """Whether the run is validated and saved after a step, which counts from 1."""
    return step % intervals(config.steps)[1] == 0 or _ends_part(config, step)


def part_of(config: RunConfig, step: int) -> Part:
    """The part that the step after `step` steps belongs to; after the last step, the last part."""
    return next(part for part in reversed(config.parts) if part.begin <= step)


def learning_rate_factor(config: RunConfig, step: int) -> float:
    """The learning rate after `step` steps, as a share of the highest one."""
    if config.schedule == "constant":
        return _warmup(step, config.warmup_steps)
    part = part_of(config, step)
    steps, done = part.end - part.begin, step - part.begin
    warmup_steps = config.warmup_steps if part.begin == 0 else min(config.warmup_steps, max(1, steps // 10))
    return _warmup(done, warmup_steps) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / steps)))


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps)


def _ends_part(config: RunConfig, step: int) -> bool:
    return any(step == part.end for part in config.parts)
