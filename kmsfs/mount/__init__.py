"""What a mount is: file-system semantics over the envelope, and the transports that carry them."""
