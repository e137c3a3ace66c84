"""Routes: which plugin a component belongs to, what it is called there, and where it can be reached."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError, ErrorCode, RpcError
from stepflow_trio.flows.paths import parse_path
from stepflow_trio.runtime.routing import Condition, Route, Router, Rule, Target, route_faults


def when(path, value):
    return Condition(path=parse_path(path), value=value)


def router(**routes):
    """One route for each keyword pattern: a plugin's name, or rules."""
    raise NotImplementedError


def routed(routes):
    return Router([
        Route(pattern, (Rule(plugin=rules),) if isinstance(rules, str) else tuple(rules))
        for pattern, rules in routes.items()
    ])
