"""What is done to a shard, from plain values to plain values."""
