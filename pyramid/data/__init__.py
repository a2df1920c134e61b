"""Data: reading and writing video, procedural worlds, folders and shards of clips."""
