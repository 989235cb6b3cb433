"""What looks after a running job: calls that do not end, ranks that are slow, ranks of another software."""
