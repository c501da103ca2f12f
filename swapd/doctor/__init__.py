"""What `swapd doctor` looks at: this machine and this installation, one finding a check."""
