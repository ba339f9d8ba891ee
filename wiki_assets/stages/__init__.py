"""What is done to a shard: plain Python, one module a stage; neither Dagster nor Ray is needed here."""
