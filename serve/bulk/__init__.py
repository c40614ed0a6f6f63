"""Answers for a whole file, table or folder of shards."""
