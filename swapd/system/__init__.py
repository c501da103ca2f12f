"""What the daemon needs of the operating system's service manager and file system."""
