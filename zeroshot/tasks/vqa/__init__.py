"""Images and questions to answers."""
