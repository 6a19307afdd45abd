"""What people use around a running system. These modules import the core; the core never imports them."""
