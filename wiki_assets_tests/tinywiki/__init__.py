"""Tinywiki: a small wiki of our own writing, published in every layout of the CirrusSearch dumps."""
