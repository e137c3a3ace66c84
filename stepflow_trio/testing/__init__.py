"""The kit with which this library is tested, for whoever builds on it.

Links with faults, a peer that follows a script, and a sweep that cancels a scenario at every scheduler step.
Nothing in here reads a real clock: run it under :class:`trio.testing.MockClock`.
"""

from stepflow_trio.testing.cancellation import (
    AllPoints,
    Cancellable,
    CancelStrategy,
    EveryNth,
    FirstN,
    RandomSample,
    Scenario,
    SweepFailure,
    SweepReport,
    cancel_everywhere,
)
from stepflow_trio.testing.links import (
    Faults,
    FaultyLink,
    Replacement,
    byte_link_pair,
    dropped,
    duplicated,
    garbled,
    memory_link_pair,
)
from stepflow_trio.testing.peers import ScriptedPeer, UnexpectedMessage

__all__ = [
    "AllPoints",
    "CancelStrategy",
    "Cancellable",
    "EveryNth",
    "Faults",
    "FaultyLink",
    "FirstN",
    "RandomSample",
    "Replacement",
    "Scenario",
    "ScriptedPeer",
    "SweepFailure",
    "SweepReport",
    "UnexpectedMessage",
    "byte_link_pair",
    "cancel_everywhere",
    "dropped",
    "duplicated",
    "garbled",
    "memory_link_pair",
]
