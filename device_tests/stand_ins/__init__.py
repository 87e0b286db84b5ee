"""Machines that play real devices on this one's loopback: arm64 behind OpenSSH, and behind adb."""
