"""The protocol without I/O: bytes and intentions in, bytes and events out.

Nothing here knows trio, a clock or a log. :class:`~stepflow_trio.protocol.peer.Peer` is the whole of one
end of a connection as data; :class:`~stepflow_trio.protocol.lines.LineFramer` cuts a byte stream into its
frames.
"""
