"""What a run shows of itself: read, never decide."""
