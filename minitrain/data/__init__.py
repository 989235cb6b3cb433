"""From text to the batch of a step."""
