"""Wikipedia's weekly search dumps as clean articles, token ids, passage embeddings and a Chroma index."""
