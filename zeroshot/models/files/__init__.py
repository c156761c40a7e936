"""Models on this disk: where their files are, what these may say, what is read of them."""
