"""Records, version vectors, merge and wire format; pure: no files, no sockets, no clocks of its own."""
