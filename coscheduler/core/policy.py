"""Who goes first. Small pure rules, so that another policy is another file of this size."""

from coscheduler.core.model import Job

RankKey = tuple[int, int, str]  # ends in the job's name


def rank_key(job: Job, ageing_ms: int) -> RankKey:
    """Smaller goes first: arrival, moved back by `ageing_ms` for each class step.

    The key never changes while a job waits, so a job overtakes at most those of a lower class that
    came less than (class gap x ageing_ms) before it, and everything runs at last.
    """
    return (job.arrival_ms - int(job.priority) * ageing_ms, job.arrival_ms, job.name)
