"""What a model costs: MACs, parameters, bytes, memory, and measured latency."""
