"""Images to captions."""
