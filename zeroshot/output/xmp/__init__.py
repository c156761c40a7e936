"""XMP documents, changed without touching what belongs to others."""
