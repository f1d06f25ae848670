"""The vocabulary: what the IR can say. No decisions, no cost, no tracing."""
