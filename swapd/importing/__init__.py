"""Other programs' configurations, turned into swapd's. Pure: reads no file and no environment of its own."""
