"""coscheduler: three models, one GPU, one ledger of its memory."""

__version__ = "0.1.0"
