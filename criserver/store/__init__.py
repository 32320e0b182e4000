"""What the daemon knows of sandboxes and containers: SQLite on disk, mirrored in memory.

Every change is written to disk first and to memory second. Nothing here imports the server.
"""
