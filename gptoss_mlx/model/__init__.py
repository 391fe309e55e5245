"""The gpt-oss network, and what it is made of: config, weights, KV cache, experts."""
