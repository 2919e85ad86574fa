"""The loop, what it minimises, and how it steps."""
