"""Which configuration the test cases of a flow run with."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.source import Source
from stepflow_trio.runtime.config import (
    DEFAULT_CONFIG,
    FILE_NAMES,
    Config,
    find_config,
    read_config,
    read_config_file,
    the_one_file,
)

TEST_FILE_NAMES = tuple(name.replace(".y", ".test.y") for name in FILE_NAMES)
"""What a configuration file for tests alone is called, beside the flow."""

CONFIGURATION_NAMES = frozenset((*FILE_NAMES, *TEST_FILE_NAMES))

_INLINE_KEYS = ("config", "stepflow_config", "stepflowConfig")
"""What a flow's own configuration is called, and was in earlier releases."""


@dataclass(frozen=True, slots=True)
class CaseConfig:
    """A configuration; those of the same file have the same key."""

    key: Hashable
    config: Config


class CaseConfigs:
    """Finds the configurations of flows, and reads each once.

    Args:
        path: the file that all flows use; None: the first there is of

            1. the file that the flow's ``test.configFile`` names, relative to the flow
            2. ``test.config`` itself
            3. one of `TEST_FILE_NAMES` beside the flow
            4. what every command finds: one of `FILE_NAMES` beside the flow, or else here
            5. the builtin components alone
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._read: dict[Hashable, Config | ConfigError] = {}

    def of(self, flow_path: str, text: bytes, flow: Flow, source: Source) -> CaseConfig:
        """The configuration of a flow.

        Raises:
            ConfigError: it cannot be found, read or used.
        """
        beside = Path(flow_path)
        test = flow.test or {}
        if self._path is not None:
            return self._of_file(Path(self._path))
        if "configFile" in test and "config" in test:
            place = str(source.place(("test",), at_key=True))
            raise ConfigError("test has a config and a configFile: remove one of them", place)
        if "configFile" in test:
            file = beside.parent / test["configFile"]
            if not file.exists():
                place = source.place(("test", "configFile"))
                raise ConfigError(f'test.configFile: there is no file "{file}"', str(place))
            return self._of_file(file)
        if "config" in test:
            raw = cast("dict[str, Any]", source.value["test"])
            key = next(key for key in _INLINE_KEYS if raw.get(key) is not None)
            directory = beside.absolute().parent
            config = read_config(text, name=flow_path, directory=directory, at=("test", key))
            return CaseConfig((flow_path, "test"), config)
        found = the_one_file(beside.parent, TEST_FILE_NAMES) or find_config(beside, Path())
        return self._of_file(found) if found is not None else CaseConfig(None, DEFAULT_CONFIG)

    def _of_file(self, path: Path) -> CaseConfig:
        key = os.path.realpath(path)
        if key not in self._read:
            try:
                self._read[key] = read_config_file(path)
            except ConfigError as exc:
                self._read[key] = exc
        read = self._read[key]
        if isinstance(read, ConfigError):
            raise read
        return CaseConfig(key, read)
