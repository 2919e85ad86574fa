"""From text files to batches of ids, and back to text."""
