"""The outside world: the dump server, the data root, the model, Ray and Chroma, each behind one small door."""
