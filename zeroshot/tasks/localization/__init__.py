"""Images to boxes and masks."""
