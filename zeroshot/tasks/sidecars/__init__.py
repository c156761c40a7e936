"""Files for images, beside them or elsewhere, as a task around another."""
