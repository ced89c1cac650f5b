"""Benchmarks: each checks its result against a peer, then times both in alternating rounds."""
