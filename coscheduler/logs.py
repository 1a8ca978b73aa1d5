"""Structured logs: one JSON object a line on stderr, with the job's name where there is one."""

import contextvars
import json
import logging
import sys
import time

current_job: contextvars.ContextVar[str] = contextvars.ContextVar("current_job", default="")


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, and the fields `job` and `engine` when they are known."""

    def __init__(self, engine: str = "") -> None:
        super().__init__()
        self._engine = engine

    def format(self, record: logging.LogRecord) -> str:
        """One line, never a newline inside."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := getattr(record, "job", "") or current_job.get():
            entry["job"] = job
        if engine := getattr(record, "engine", "") or self._engine:
            entry["engine"] = str(engine)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(level: int = logging.INFO, engine: str = "") -> None:
    """Send every log record of this process to stderr as JSON; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(engine))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
