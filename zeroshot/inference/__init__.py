"""Images and texts to embeddings: cached, batched, read ahead."""
