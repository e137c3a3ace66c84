"""The REST API of a runtime: :class:`RestApi`, an ASGI application."""

from stepflow_trio.runtime.rest_api.application import API_PATH, RestApi

__all__ = ["API_PATH", "RestApi"]
