"""Streams between clients and containers: sessions that any transport can carry.

``fds`` moves bytes through pipes and terminals on the event loop, ``session`` opens the streams of
an exec or an attach. They know nothing of gRPC, SPDY or WebSocket.
"""
