"""What the stream worker is compared with: one file each, run as a module by a Python of their own.

Their arguments are BROKER TOPIC COUNT: each reads so many messages of a topic from its beginning and adds them up in
windows of a minute by device, but for `raw.py`, which only reads. The last line they print is one JSON object:
`records`, `windows`, and from the first message to the last `seconds` on the clock and `cpu_seconds` of the process.
"""
