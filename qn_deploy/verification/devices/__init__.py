"""Devices: other machines, emulated ones too, that run the written files: `qemu[:CPU]`, `adb[:SERIAL]`, `ssh:HOST`."""
