"""The device service: looks, infers, keeps what it saw until the cloud has it, serves the models the cloud sends."""
