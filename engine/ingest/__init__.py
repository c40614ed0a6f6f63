"""From any format to shards: plan, screen, write, report."""
