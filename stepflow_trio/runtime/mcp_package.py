"""Whether the package ``mcp`` is there, which is an extra."""

from __future__ import annotations

import importlib.metadata

__all__ = ["INSTALL_MCP", "why_no_mcp"]

INSTALL_MCP = "pip install 'stepflow-trio[mcp]'"


def why_no_mcp() -> str:
    """Why MCP servers cannot be used; empty if they can. Imports nothing."""
    try:
        version = importlib.metadata.version("mcp")
    except importlib.metadata.PackageNotFoundError:
        return f"it needs the package mcp: {INSTALL_MCP}"
    if not version.startswith("2."):
        return f"it needs version 2 of the package mcp, and {version} is installed: {INSTALL_MCP}"
    return ""
