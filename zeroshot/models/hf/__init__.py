"""Models of Hugging Face transformers: encoders, language models, detectors, segmenters."""
