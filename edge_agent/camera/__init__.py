"""Live cameras and streams, each read by a process of its own."""
