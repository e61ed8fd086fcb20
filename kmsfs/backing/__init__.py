"""The cipher directory: files by positioned reads and writes, directories by openat-style calls."""
