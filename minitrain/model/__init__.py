"""The transformer: its parameters, its blocks with tensor parallelism, a pipeline stage of it."""
