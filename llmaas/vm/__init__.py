"""The service in a virtual machine of its own: what runs on the host, what runs in the guest, the line between them."""
