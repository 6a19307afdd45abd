"""How fast the package is, beside its peers and RabbitMQ's own limit: ``make bench``."""
