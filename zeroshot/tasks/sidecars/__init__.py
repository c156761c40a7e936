"""Files beside images, as a task around another."""
