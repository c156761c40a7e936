"""Vision-language models that write, answer, or score image-text pairs."""
