"""Files in and out: buffers and sets that other code wrote, and formats that other code reads."""
