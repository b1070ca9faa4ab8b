"""What is measured, and what it may be: benchmarks, timelines, the demonstration."""
