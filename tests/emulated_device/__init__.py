"""Run in processes of their own: torch takes the emulated device for the machine's accelerator."""
