"""For component authors: functions in, a served worker out."""

from stepflow_trio.worker.context import Context
from stepflow_trio.worker.worker import Worker

__all__ = ["Context", "Worker"]
