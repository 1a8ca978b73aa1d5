"""Who goes first. Small pure rules, so that another policy is another file of this size."""

from coscheduler.core.model import Job, StageState

RankKey = tuple[int, int, str]  # ends in the job's name


def rank_key(job: Job, served_ms: int, ageing_ms: int) -> RankKey:
    """Smaller goes first: arrival, moved back by `ageing_ms` for each class step, and on by what
    the current stage has run (`served_ms`): waiting makes a job old, working does not.

    The key never changes while a job waits, so a job overtakes at most those of a lower class that
    came less than (class gap x ageing_ms) before it, and everything runs at last. A long stage that
    runs falls behind those of a higher class that came later.
    """
    key_ms = job.arrival_ms + served_ms - int(job.priority) * ageing_ms
    return (key_ms, job.arrival_ms, job.name)


def served_ms(job: Job) -> int:
    """What the current stage has run, as far as its record says."""
    return sum(stage.run_ms for stage in job.stages if stage.state is not StageState.SUCCEEDED)
