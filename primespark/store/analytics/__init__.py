"""Questions to the metrics store: buckets of time, the plan that reads as little as it may, and exact answers."""
