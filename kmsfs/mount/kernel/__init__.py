"""The kernel's FUSE protocol on /dev/fuse, spoken directly (linux/fuse.h, protocol 7.31 and later)."""
