"""The localiser: one shrinking rewrite for the time axis (microbatches) and for device axes (shards)."""
