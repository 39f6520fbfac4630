"""Run in a process of their own: torch takes the emulated device for the machine's accelerator."""
