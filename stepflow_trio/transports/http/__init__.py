"""HTTP: the client, the ASGI endpoint and its two hosts, and the links over them."""
