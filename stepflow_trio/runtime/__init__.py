"""Runs flows over workers: open a :class:`Runtime` in your nursery, submit flows, get results."""

from stepflow_trio.runtime.runs import Run
from stepflow_trio.runtime.runtime import ListedComponent, Runtime, open_runtime

__all__ = ["ListedComponent", "Run", "Runtime", "open_runtime"]
